"""T5X's native checkpoints: what T5X wrote itself, every variant of the format, and damaged copies."""

import json
import shutil

import ml_dtypes
import msgpack
import numpy as np
import pytest

from switch_jax import interop
from switch_jax.config import ConfigError
from switch_jax.interop.t5x import _kvstore

NAME = 'encoder/layers_1/mlp/expert/wi/kernel'
FOLDER = 'target.encoder.layers_1.mlp.expert.wi.kernel'


@pytest.fixture
def written(tmp_path, sparse_model, random_params, write_t5x):
  """A small checkpoint to damage."""
  return write_t5x(tmp_path / 'checkpoint_7', random_params(sparse_model))


def index_of(folder, change):
  """Rewrites the index of a checkpoint with what `change` does to it."""
  index = msgpack.unpackb((folder / 'checkpoint').read_bytes(), strict_map_key=False)
  change(index)
  (folder / 'checkpoint').write_bytes(msgpack.packb(index))


def test_checkpoint_written_by_t5x(checkpoints, flatten):
  config, params = interop.load('t5x', checkpoints / 't5x_switch_base_tiny')
  sizes = (config.vocab_size, config.emb_dim, config.num_heads, config.head_dim, config.mlp_dim)
  assert sizes == (384, 32, 4, 8, 64)
  assert (config.num_encoder_layers, config.num_decoder_layers) == (4, 4)
  assert (config.mlp_activations, config.logits_via_embedding, config.init) == (('relu',), True, 'released')
  assert config.mask_padding_queries
  moe = config.moe
  assert (moe.num_experts, moe.encoder_layers, moe.decoder_layers, moe.expert_mlp_dim) == (4, 2, 2, None)
  assert (moe.train_capacity_factor, moe.eval_capacity_factor, moe.expert_capacity) == (1.25, 2.0, None)
  assert (moe.capacity_rounding, moe.min_expert_capacity) == ('round', 4)
  assert (moe.sequences_per_group, moe.padding_takes_slots, moe.jitter_noise) == (None, True, 0.0)
  flat = flatten(params)
  assert {name: array.shape for name, array in flat.items()} == interop.parameter_shapes(config)
  for array in flat.values():
    assert type(array) is np.ndarray
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert array.flags.writeable


def assert_loads(folder, expected, flatten):
  _, params = interop.load('t5x', folder)
  flat = flatten(params)
  assert flat.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(flat[name], array, strict=True)


@pytest.mark.parametrize(
  'form',
  [
    {},
    {'old_paths': True},
    {'driver': 'gfile'},
    {'driver': 'gcs'},
    {'driver': 'gcs', 'old_paths': True},
    {'inline': lambda name: True},
    {'inline': lambda name: name.endswith('scale')},
  ],
  ids=['now', 'old paths', 'gfile', 'gcs', 'gcs, old paths', 'all in the index', 'some in the index'],
)
def test_forms_of_the_index(tmp_path, sparse_model, random_params, write_t5x, flatten, form):
  params = random_params(sparse_model)
  assert_loads(write_t5x(tmp_path / 'checkpoint_7', params, **form), params, flatten)


@pytest.mark.parametrize('inline', [False, True])
@pytest.mark.parametrize('dtype', ['bfloat16', 'uint16', 'float16'])
def test_short_floats_are_exact(tmp_path, sparse_model, random_params, write_t5x, flatten, dtype, inline):
  params = random_params(sparse_model)
  kind = np.float16 if dtype == 'float16' else ml_dtypes.bfloat16
  stored = {name: array.astype(kind) for name, array in params.items()}
  expected = {name: array.astype(np.float32) for name, array in stored.items()}
  if dtype == 'uint16':  # the bits of bfloat16, as before version 3
    stored = {name: array.view(np.uint16) for name, array in stored.items()}
  assert_loads(write_t5x(tmp_path / 'c', stored, version=2, inline=lambda name: inline), expected, flatten)


def test_arrays_in_the_index_with_names_of_dtypes_as_bytes(written, flatten):
  """As old msgpack wrote them; V2 is what NumPy calls bfloat16."""
  scale = np.arange(10).astype(ml_dtypes.bfloat16)

  def change(index):
    raw = msgpack.packb((scale.shape, b'V2', scale.tobytes()))
    index['optimizer']['target']['encoder']['encoder_norm']['scale'] = msgpack.ExtType(1, raw)

  index_of(written, change)
  _, params = interop.load('t5x', written)
  np.testing.assert_array_equal(params['encoder']['encoder_norm']['scale'], np.arange(10, dtype=np.float32))


def test_index_file_may_be_named(written):
  assert interop.load_config('t5x', written / 'checkpoint') == interop.load_config('t5x', f'{written}/')


def test_configuration_needs_the_index_only(checkpoints, tmp_path):
  shutil.copy(checkpoints / 't5x_switch_base_tiny' / 'checkpoint', tmp_path / 'checkpoint')
  config = interop.load_config('t5x', tmp_path, num_experts=4)
  assert config == interop.load_config('t5x', checkpoints / 't5x_switch_base_tiny')
  with pytest.raises(ConfigError, match=r'decoder_norm/scale cannot be read .*Copy the folder again'):
    interop.load('t5x', tmp_path)


def test_remote_places():
  expected = {'driver': 'gcs', 'bucket': 't5-data', 'path': 'models/c/target.x/'}
  assert _kvstore('gs://t5-data/models/c', 'target.x/') == expected
  assert _kvstore('gs://t5-data', '') == {'driver': 'gcs', 'bucket': 't5-data', 'path': ''}
  assert _kvstore('/models/c', 'target.x') == {'driver': 'file', 'path': '/models/c/target.x/'}


def test_scanned_parameters(tmp_path, sparse_model, random_params, write_t5x, flatten):
  """Layers 0 and 2 of the decoder become rows of `blocks/layers_0`, 1 and 3 of `blocks/layers_1`."""
  params = random_params(sparse_model)
  config, scanned = interop.load('t5x', write_t5x(tmp_path / 'c', params), scan_layers=True)
  assert config.scan_layers
  flat = flatten(scanned)
  wi = 'mlp/expert/wi/kernel'
  assert flat[f'decoder/blocks/layers_1/{wi}'].shape == (2, 3, 10, 7)
  np.testing.assert_array_equal(flat[f'decoder/blocks/layers_1/{wi}'][1], params[f'decoder/layers_3/{wi}'])
  np.testing.assert_array_equal(
    flat['encoder/blocks/layers_0/mlp/wo/kernel'][0], params['encoder/layers_0/mlp/wo/kernel']
  )
  again = flatten(interop.separate_layers(scanned, config))
  assert again.keys() == params.keys()
  assert all(np.array_equal(again[name], params[name]) for name in params)


# Optimizer state.


def test_optimizer_state_written_by_t5x(checkpoints, tmp_path):
  """Only `encoder/layers_1` of it is kept; the index still names the rest."""
  folder = shutil.copytree(checkpoints / 't5x_switch_base_tiny', tmp_path / 'c')
  with pytest.raises(ConfigError, match='cannot be read'):
    interop.load_optimizer_state(folder)

  def change(index):
    states = index['optimizer']['state']['param_states']
    states['encoder'] = {'layers_1': states['encoder']['layers_1']}
    del states['decoder'], states['token_embedder']

  index_of(folder, change)
  state = interop.load_optimizer_state(folder)
  assert state['step'] == 30
  layer = state['param_states']['encoder']['layers_1']
  wi, router = layer['mlp']['expert']['wi']['kernel'], layer['mlp']['router']['router_weights']['w']['kernel']
  assert {name: wi[name].shape for name in wi} == {'m': (1,), 'v': (1,), 'v_row': (4, 32), 'v_col': (4, 64)}
  assert router['v'].shape == (32, 4)
  assert wi['v_row'].dtype == np.float32
  assert (wi['v_row'] > 0).all()


def test_optimizer_state_round_trip(tmp_path, sparse_model, random_params, write_t5x):
  state = {'encoder/x/v': np.ones((2, 3), np.float32), 'encoder/y/v': np.zeros((4,), np.float32)}
  folder = write_t5x(tmp_path / 'c', random_params(sparse_model), state=state)
  index_of(folder, lambda index: index['optimizer']['state']['param_states'].update(left_out=None))
  found = interop.load_optimizer_state(folder)
  assert found['step'] == 17
  assert list(found['param_states']) == ['encoder']
  np.testing.assert_array_equal(found['param_states']['encoder']['y']['v'], np.zeros(4))


def test_no_optimizer_state(written):
  with pytest.raises(ConfigError, match='no optimizer state'):
    interop.load_optimizer_state(written)


# What users get wrong.


def fails(path, match):
  with pytest.raises(ConfigError, match=match) as caught:
    interop.load('t5x', path)
  assert '\n' not in str(caught.value)


def test_no_such_folder(tmp_path):
  fails(tmp_path / 'models' / 'checkpoint_1', rf'there is no .*checkpoint_1 .*{tmp_path}\)')


@pytest.mark.parametrize(
  ('entries', 'found'),
  [
    ((), 'it is empty'),
    (('checkpoint_90/', 'checkpoint_100/', 'config.gin'), 'holds the checkpoints checkpoint_90, checkpoint_100;'),
    (('d/', '_METADATA'), 'Orbax format; of a T5X checkpoint give the folder above it'),
    (('config.json', 'model.safetensors'), 'format huggingface'),
    (('pytorch_model.bin',), 'PyTorch pickles'),
    (('checkpoints/', 'train/'), 'a MODEL_DIR of switch_jax itself'),
    (tuple('abcdefg'), 'it holds a, b, c, d, e and 2 more'),
  ],
)  # fmt: skip
def test_other_folders(tmp_path, entries, found):
  for entry in entries:
    (tmp_path / entry).mkdir() if entry.endswith('/') else (tmp_path / entry).touch()
  fails(tmp_path, f'is no T5X checkpoint, whose folder has a file named checkpoint: .*{found}')


def test_tensorflow_checkpoint(tmp_path):
  (tmp_path / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-500"')
  fails(tmp_path, 'is a TensorFlow checkpoint')


@pytest.mark.parametrize('keep', [0, 1, 1000])
def test_truncated_index(written, keep):
  (written / 'checkpoint').write_bytes((written / 'checkpoint').read_bytes()[:keep])
  fails(written, rf'\({keep} bytes\) is not a whole msgpack file')


def test_index_of_something_else(tmp_path):
  (tmp_path / 'checkpoint').write_bytes(msgpack.packb({'params': {}, 'step': 1}))
  fails(tmp_path, 'holds params, step; a T5X checkpoint has the keys version and optimizer')
  (tmp_path / 'checkpoint').write_bytes(msgpack.packb({'version': 3, 'optimizer': {'state': {}}}))
  fails(tmp_path, 'records no parameters')


def test_lost_files(written):
  (written / FOLDER / '0.0.0').unlink()
  fails(written, f'{NAME} cannot be read from .*missing.*Copy the folder again')
  shutil.rmtree(written / FOLDER)
  fails(written, f'{NAME} cannot be read from .*does not exist.*Copy the folder again')


def test_truncated_array(written):
  chunk = written / FOLDER / '0.0.0'
  chunk.write_bytes(chunk.read_bytes()[:-20])
  fails(written, f'{NAME} cannot be read from .*Copy the folder again')


def test_array_of_another_checkpoint(written):
  metadata = json.loads((written / FOLDER / '.zarray').read_text())
  (written / FOLDER / '.zarray').write_text(json.dumps(metadata | {'shape': [3, 10, 6]}))
  fails(written, rf'{NAME} cannot be read .*the shape \(3, 10, 6\), the index says \(3, 10, 7\)')


@pytest.mark.parametrize('place', ['/etc/target/', '../other/target/', ''])
def test_arrays_outside_the_folder(written, place):
  def change(index):
    index['optimizer']['target']['token_embedder']['embedding']['kvstore']['path'] = place

  index_of(written, change)
  fails(written, 'token_embedder/embedding .* are relative to it')


def test_leaves_of_another_kind(written):
  embedding = lambda index: index['optimizer']['target']['token_embedder']['embedding']  # noqa: E731
  index_of(written, lambda index: embedding(index).update(driver='n5'))
  fails(written, 'only zarr arrays')
  index_of(written, lambda index: index['optimizer']['target']['token_embedder'].update(embedding=3.5))
  fails(written, r'token_embedder/embedding in .* is 3\.5')


@pytest.mark.parametrize('dtype', ['int32', 'float64'])
def test_wrong_dtype(tmp_path, sparse_model, random_params, write_t5x, dtype):
  params = random_params(sparse_model)
  params[NAME] = params[NAME].astype(dtype)
  fails(write_t5x(tmp_path / 'c', params), f'{NAME} in .* is stored as {dtype}; parameters must be float32, bfloat16')
