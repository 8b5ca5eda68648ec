"""Writers and the readers of other software: round trips bit for bit, resumed conversions, refusals by name."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import ml_dtypes
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

from switch_jax import convert, interop
from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import CheckpointConfig, ConfigError, ModelConfig, MoeConfig, OptimizerConfig
from switch_jax.interop import conversion, huggingface_writer, moments
from switch_jax.model import abstract_parameters, parameter_axes
from switch_jax.parallel import Layout
from switch_jax.training.adafactor import factoring
from switch_jax.training.optimizer import make_optimizer
from switch_jax.training.state import TrainState

SIZES = dict(vocab_size=11, emb_dim=10, num_heads=2, head_dim=3, mlp_dim=7, num_encoder_layers=2, num_decoder_layers=4)
MODELS = {
  'base': ModelConfig(**SIZES, moe=MoeConfig(num_experts=3)),
  'xxl': ModelConfig(
    **SIZES,
    mlp_activations=('gelu', 'linear'),
    logits_via_embedding=False,
    moe=MoeConfig(num_experts=8, eval_capacity_factor=4.0),
  ),
  'c': ModelConfig(
    **SIZES, logits_via_embedding=False, moe=MoeConfig(num_experts=5, encoder_layers=1, decoder_layers=1)
  ),
  'scanned': ModelConfig(**SIZES, scan_layers=True, moe=MoeConfig(num_experts=3)),
  'dense': ModelConfig(**SIZES),
  'square': ModelConfig(**(SIZES | dict(mlp_dim=10)), moe=MoeConfig(num_experts=3)),
}


def save_own(folder, config, *, with_optimizer=True):
  """Saves a checkpoint through Orbax, as training does, every number another one; returns its state."""
  layout = Layout.single_device()
  params = abstract_parameters(config, layout)
  chain = make_optimizer(OptimizerConfig(), params, parameter_axes(config), layout)
  state = TrainState(jax.ShapeDtypeStruct((), np.int32), params, jax.eval_shape(chain.init, params))
  random = np.random.default_rng(1)

  def fill(leaf):
    return np.full(leaf.shape, 9, leaf.dtype) if leaf.dtype == np.int32 else random.normal(size=leaf.shape).astype('f4')

  state = jax.tree.map(fill, state)
  if not with_optimizer:
    state = {'step': state.step, 'params': state.params}
  store = CheckpointStore(folder, CheckpointConfig())
  store.save(9, state, {'model': config.to_json(), 'vocabulary': {'size': 11}, 'identity': {'a': 1}})
  store.close()
  return state


def run(source, target, *more):
  return convert.main([f'--from={source}', f'--to={target}', *more])


def state_of(folder):
  """Returns everything a checkpoint holds, read by Orbax itself."""
  store = CheckpointStore(folder)
  step = store.latest_step()
  path = store.path(step) / 'state'
  tree = ocp.StandardCheckpointHandler().metadata(path).tree
  arguments = ocp.checkpoint_utils.construct_restore_args(jax.tree.map(lambda x: np.empty((), x.dtype), tree))
  with ocp.PyTreeCheckpointer() as reader:
    return reader.restore(path, restore_args=arguments)


def assert_same(a, b):
  a, b = ({jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(t)} for t in (a, b))
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name, strict=True)


@pytest.mark.parametrize('model', MODELS)
def test_ours_to_t5x_to_ours(tmp_path, model):
  """Parameters, Adafactor's moments and the step come back bit for bit, and Orbax reads what was written."""
  save_own(tmp_path / 'ours', MODELS[model])
  assert run(f'switch_jax:{tmp_path}/ours', f't5x:{tmp_path}/checkpoint_9') == 0
  scan = [f'--gin.scan_layers={MODELS[model].scan_layers}']
  assert run(f't5x:{tmp_path}/checkpoint_9', f'switch_jax:{tmp_path}/again', *scan) == 0
  assert_same(state_of(tmp_path / 'again'), state_of(tmp_path / 'ours'))
  index = msgpack.unpackb((tmp_path / 'checkpoint_9' / 'checkpoint').read_bytes(), strict_map_key=False)
  assert index['version'] == 3
  embedding = index['optimizer']['target']['token_embedder']['embedding']
  assert embedding['kvstore'] == {'driver': 'file', 'path': 'target.token_embedder.embedding/'}
  assert embedding['metadata']['compressor']['id'] == 'gzip'
  assert not list(tmp_path.glob('*.converting'))


@pytest.mark.parametrize('model', ['base', 'c', 'scanned', 'dense'])
def test_ours_to_huggingface_to_ours(tmp_path, model):
  config = MODELS[model]
  save_own(tmp_path / 'ours', config)
  shards = [] if model == 'base' else ['--max_shard_bytes=3000']
  assert run(f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/theirs', *shards) == 0
  assert (tmp_path / 'theirs' / 'model.safetensors.index.json').exists() == bool(shards)
  scan = [f'--gin.scan_layers={config.scan_layers}']
  assert run(f'huggingface:{tmp_path}/theirs', f'switch_jax:{tmp_path}/again', *scan) == 0
  assert_same(state_of(tmp_path / 'again')['params'], state_of(tmp_path / 'ours')['params'])
  again = interop.load_config('switch_jax', tmp_path / 'again')
  for field in ('vocab_size', 'mlp_activations', 'logits_via_embedding', 'layer_norm_epsilon', 'scan_layers'):
    assert getattr(again, field) == getattr(config, field)


@pytest.mark.parametrize('folder', ['t5x_switch_base_tiny'])
def test_t5x_optimizer_state_survives(checkpoints, tmp_path, folder):
  """What T5X wrote of one layer (the rest of its state is not kept here) comes out as it went in."""
  source = shutil.copytree(checkpoints / folder, tmp_path / 'checkpoint_30')
  index = msgpack.unpackb((source / 'checkpoint').read_bytes(), strict_map_key=False)
  states = index['optimizer']['state']['param_states']
  states['encoder'] = {'layers_1': states['encoder']['layers_1']}
  del states['decoder'], states['token_embedder']
  (source / 'checkpoint').write_bytes(msgpack.packb(index))
  assert run(f't5x:{source}', f't5x:{tmp_path}/copy') == 0
  before, after = (interop.load_optimizer_state(path) for path in (source, tmp_path / 'copy'))
  assert before['step'] == after['step'] == 30
  layer = lambda state: state['param_states']['encoder']['layers_1']  # noqa: E731
  assert_same(layer(before), layer(after))


def test_rows_and_columns_of_moments_belong_to_the_same_axes_as_in_t5x():
  """T5X averages the hidden axis of experts in v_row whatever the sizes; a matrix alone by length."""
  axes = {'wi': ('expert', 'embed', 'expert_mlp'), 'wo': ('expert', 'expert_mlp', 'embed')}
  for embed, hidden in ((10, 7), (7, 10), (8, 8)):
    shapes = {'wi': (3, embed, hidden), 'wo': (3, hidden, embed)}
    for kernel, shape in shapes.items():
      name = f'encoder/layers_1/mlp/expert/{kernel}/kernel'
      ours = factoring(shape, axes[kernel], 128)
      row_averages_hidden = axes[kernel][ours.largest] == 'expert_mlp'
      assert moments.change_places(name, shape) == (not row_averages_hidden), (name, shape)
  assert not moments.change_places('encoder/layers_0/mlp/wo/kernel', (10, 7))


def test_values_of_moments_change_places(tmp_path):
  """Square experts: shapes cannot tell rows from columns, values do."""
  state = save_own(tmp_path / 'ours', MODELS['square'])
  assert run(f'switch_jax:{tmp_path}/ours', f't5x:{tmp_path}/theirs') == 0
  theirs = interop.load_optimizer_state(tmp_path / 'theirs')['param_states']['encoder']['layers_1']['mlp']['expert']
  ours = state.opt_state[0].moments['encoder']['layers_1']['mlp']['expert']
  np.testing.assert_array_equal(theirs['wi']['kernel']['v_row'], ours['wi']['kernel']['v_row'])
  np.testing.assert_array_equal(theirs['wo']['kernel']['v_row'], ours['wo']['kernel']['v_col'])
  np.testing.assert_array_equal(theirs['wo']['kernel']['v_col'], ours['wo']['kernel']['v_row'])
  assert theirs['wo']['kernel']['v'].shape == (1,)


def test_optimizer_state_is_dropped_on_request(tmp_path, capsys):
  save_own(tmp_path / 'ours', MODELS['base'])
  assert run(f'switch_jax:{tmp_path}/ours', f't5x:{tmp_path}/theirs', '--optimizer_state=drop') == 0
  assert "optimizer's state: left out, as asked" in capsys.readouterr().out
  with pytest.raises(ConfigError, match='no optimizer state'):
    interop.load_optimizer_state(tmp_path / 'theirs')
  index = msgpack.unpackb((tmp_path / 'theirs' / 'checkpoint').read_bytes(), strict_map_key=False)
  assert list(index['optimizer']['state']) == ['step']  # T5X stumbles over an empty param_states


def test_bfloat16_is_half_the_size_and_exact_for_numbers_that_are(tmp_path, random_params, write_t5x, sparse_model):
  params = random_params(sparse_model)
  source = write_t5x(tmp_path / 'c', params)
  for format in ('t5x', 'huggingface'):
    assert run(f't5x:{source}', f'{format}:{tmp_path}/{format}', '--dtype=bfloat16') == 0
    _, loaded = interop.load(format, tmp_path / format)
    np.testing.assert_array_equal(loaded['token_embedder']['embedding'], params['token_embedder/embedding'])
  stored = load_file(tmp_path / 'huggingface' / 'model.safetensors')['shared.weight']
  assert stored.dtype == ml_dtypes.bfloat16


def write_orbax(folder, params, state):
  """Writes a checkpoint as T5X does through Orbax."""
  tree = {'target': interop_nest(params), 'state': {'step': np.int32(41), 'param_states': interop_nest(state)}}
  with ocp.PyTreeCheckpointer() as writer:
    writer.save(folder / 'state', tree)
  return folder


def interop_nest(flat):
  from switch_jax.interop.stored import nest

  return nest(flat)


def test_t5x_through_orbax(tmp_path, sparse_model, random_params, flatten):
  params = random_params(sparse_model)
  state = {f'{name}/v': np.abs(array) for name, array in params.items()}
  folder = write_orbax(tmp_path / 'checkpoint_41', params, state)
  _, loaded = interop.load('t5x', folder)
  flat = flatten(loaded)
  assert flat.keys() == params.keys()
  assert all(np.array_equal(flat[name], params[name]) for name in params)
  assert interop.load_optimizer_state(folder)['step'] == 41
  assert run(f't5x:{folder}', f't5x:{tmp_path}/native') == 0
  copy = interop.load_optimizer_state(tmp_path / 'native')
  np.testing.assert_array_equal(
    copy['param_states']['token_embedder']['embedding']['v'], np.abs(params['token_embedder/embedding'])
  )


def scanned(params, config, tables_differ=False):
  """Returns parameters as flaxformer's scan has them: blocks on the second axis, a table in every layer."""
  result = {}
  for name, array in params.items():
    stack, _, rest = name.partition('/')
    if rest.startswith('layers_') or rest == 'relpos_bias/rel_embedding':
      continue
    result[name] = array
  for stack in ('encoder', 'decoder'):
    count = config.num_layers(stack)
    for place in range(2):
      layers = range(place, count, 2)
      for name in params:
        prefix = f'{stack}/layers_{place}/'
        if name.startswith(prefix):
          rest = name.removeprefix(prefix)
          parts = [params[f'{stack}/layers_{i}/{rest}'] for i in layers]
          result[f'{stack}/{stack}/subblock_{place}/{rest}'] = np.stack(parts, axis=1)
      table = params[f'{stack}/relpos_bias/rel_embedding']
      tables = [table + np.float32(tables_differ) * i for i in layers]
      result[f'{stack}/{stack}/subblock_{place}/relpos_bias/rel_embedding'] = np.stack(tables, axis=1)
  return result


def test_t5x_through_orbax_of_another_type(tmp_path, sparse_model, random_params, capsys):
  params = {name: array.astype(np.int8) for name, array in random_params(sparse_model).items()}
  folder = write_orbax(tmp_path / 'checkpoint_41', params, {})
  refused(capsys, tmp_path, f't5x:{folder}', f't5x:{tmp_path}/out', 'is stored as |i1')


def test_t5x_scanned(tmp_path, sparse_model, random_params, write_t5x, flatten):
  params = random_params(sparse_model)
  folder = write_t5x(tmp_path / 'c', scanned(params, sparse_model))
  _, loaded = interop.load('t5x', folder)
  flat = flatten(loaded)
  assert flat.keys() == params.keys()
  for name in params:
    np.testing.assert_array_equal(flat[name], params[name], err_msg=name)
  differing = write_t5x(tmp_path / 'd', scanned(params, sparse_model, tables_differ=True))
  with pytest.raises(ConfigError, match='each with a table of relative positions of its own'):
    interop.load('t5x', differing)


# Atomic, resumed, complete.


def test_a_killed_conversion_continues(tmp_path, sparse_model, random_params, write_t5x, flatten):
  """Killed for good in the middle: the target is not there; the same command ends with the same bytes."""
  source = write_t5x(tmp_path / 'c', random_params(sparse_model))
  script = (
    'import os, signal, sys\n'
    'from switch_jax import convert\n'
    'from switch_jax.interop import t5x_writer\n'
    'original, calls = t5x_writer.T5xWriter.write, []\n'
    'def write(self, *args):\n'
    '  calls.append(1)\n'
    '  if len(calls) == 30: os.kill(os.getpid(), signal.SIGKILL)\n'
    '  original(self, *args)\n'
    't5x_writer.T5xWriter.write = write\n'
    'convert.main(sys.argv[1:])\n'
  )
  arguments = [f'--from=t5x:{source}', f'--to=t5x:{tmp_path}/out']
  killed = subprocess.run([sys.executable, '-c', script, *arguments], capture_output=True, cwd=os.getcwd())
  assert killed.returncode == -signal.SIGKILL
  assert not (tmp_path / 'out').exists()
  assert (tmp_path / 'out.converting').is_dir()
  with pytest.raises(ConfigError, match='the beginning of another conversion'):
    conversion.convert(
      tmp_path / 'out', lambda folder: conversion.make_writer('t5x', folder, *opened(source), **OPTIONS), {'from': 'x'}
    )
  assert convert.main(arguments) == 0
  assert not (tmp_path / 'out.converting').exists()
  before, after = (flatten(interop.load('t5x', path)[1]) for path in (source, tmp_path / 'out'))
  assert all(np.array_equal(before[name], after[name]) for name in before)


OPTIONS = dict(dtype='float32', record={}, max_shard_bytes=10**9)


def opened(path):
  from switch_jax.interop.loading import open_checkpoint

  return open_checkpoint('t5x', str(path)), interop.load_config('t5x', path)


def test_pieces_smaller_than_a_tensor(tmp_path, monkeypatch):
  """Rows are written and read in pieces; with tiny ones every tensor takes several."""
  from switch_jax.interop import zarr_files

  monkeypatch.setattr(zarr_files, 'PIECE_BYTES', 64)
  save_own(tmp_path / 'ours', MODELS['xxl'])
  assert run(f'switch_jax:{tmp_path}/ours', f't5x:{tmp_path}/theirs') == 0
  assert len(list((tmp_path / 'theirs' / 'target.token_embedder.embedding').iterdir())) > 5
  assert run(f't5x:{tmp_path}/theirs', f'switch_jax:{tmp_path}/again') == 0
  assert_same(state_of(tmp_path / 'again'), state_of(tmp_path / 'ours'))


# What users get wrong: refused by name, and nothing is written.


@pytest.fixture
def source(tmp_path, sparse_model, random_params, write_t5x):
  return write_t5x(tmp_path / 'c', random_params(sparse_model))


def refused(capsys, tmp_path, source, target, message, *more):
  before = sorted(tmp_path.iterdir())
  assert run(source, target, *more) == 1
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1
  assert sorted(tmp_path.iterdir()) == before


def test_existing_target(tmp_path, source, capsys):
  (tmp_path / 'out').mkdir()
  refused(capsys, tmp_path, f't5x:{source}', f'switch_jax:{tmp_path}/out', 'exists; nothing is overwritten')


@pytest.mark.parametrize(
  ('target', 'more', 'message'),
  [
    ('out', (), "--to is '/out'"),
    ('numpy:out', (), "the format 'numpy' is unknown; known are switch_jax, t5x, huggingface"),
    ('switch_jax:out', ('--gin.num_expert=8',), "Did you mean 'num_experts'"),
    ('switch_jax:out', ('--gin.num_experts=8',), 'num_experts=8 contradicts the parameters'),
    ('switch_jax:out', ('--gin.TRAIN_STEPS=8',), '--gin.TRAIN_STEPS=8 changes nothing here'),
    ('switch_jax:out', ('--gin.eval_capacity_factor=big',), "MoeConfig.eval_capacity_factor is 'big'"),
    ('switch_jax:out', ('--dtype=bfloat16',), 'parameters of switch_jax are float32'),
    ('switch_jax:out', ('--dtype=int8',), "invalid choice: 'int8'"),
    ('t5x:gs://bucket/out', (), 'is not on this disk'),
  ],
)
def test_wrong_commands(tmp_path, source, capsys, target, more, message):
  target = target.replace('out', f'{tmp_path}/out') if '://' not in target else target
  message = message.replace("'/out'", f"'{tmp_path}/out'")
  refused(capsys, tmp_path, f't5x:{source}', target, message, *more)


def damage_chunk(folder):
  path = folder / 'target.encoder.layers_1.mlp.expert.wi.kernel' / '0.0.0'
  path.write_bytes(path.read_bytes()[:-9])


def damage_index(folder):
  (folder / 'checkpoint').write_bytes((folder / 'checkpoint').read_bytes()[:50])


def lose_chunk(folder):
  (folder / 'target.encoder.layers_1.mlp.expert.wi.kernel' / '0.0.0').unlink()


def lose_tensor(folder):
  index = msgpack.unpackb((folder / 'checkpoint').read_bytes(), strict_map_key=False)
  del index['optimizer']['target']['encoder']['layers_1']['mlp']['expert']['wi']
  (folder / 'checkpoint').write_bytes(msgpack.packb(index))


def add_tensor(folder):
  index = msgpack.unpackb((folder / 'checkpoint').read_bytes(), strict_map_key=False)
  target = index['optimizer']['target']
  target['encoder']['stranger'] = target['encoder']['encoder_norm']
  (folder / 'checkpoint').write_bytes(msgpack.packb(index))


def integer_tensor(folder):
  index = msgpack.unpackb((folder / 'checkpoint').read_bytes(), strict_map_key=False)
  index['optimizer']['target']['encoder']['encoder_norm']['scale']['dtype'] = 'int8'
  (folder / 'checkpoint').write_bytes(msgpack.packb(index))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (damage_chunk, 'target/encoder/layers_1/mlp/expert/wi/kernel'),
    (lose_chunk, '0.0.0 is missing'),
    (damage_index, 'is not a whole msgpack file'),
    (lose_tensor, 'lacks parameters encoder/layers_1/mlp/expert/wi/kernel'),
    (add_tensor, 'has the unknown parameters encoder/stranger/scale'),
    (integer_tensor, 'encoder/encoder_norm/scale'),
  ],
)
def test_damaged_t5x(tmp_path, source, capsys, damage, message):
  damage(source)
  refused(capsys, tmp_path, f't5x:{source}', f'switch_jax:{tmp_path}/out', message)


def test_truncated_safetensors(tmp_path, checkpoints, capsys):
  folder = shutil.copytree(checkpoints / 'hf_switch_tiny', tmp_path / 'h')
  weights = folder / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-100])
  refused(capsys, tmp_path, f'huggingface:{folder}', f't5x:{tmp_path}/out', 'not a whole safetensors file')


def test_damage_that_only_reading_shows(tmp_path, source, capsys):
  """The right length and a wrong byte in the middle: found while converting, and what was written is removed."""
  path = source / 'target.token_embedder.embedding' / '0.0'
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0xFF
  path.write_bytes(bytes(content))
  refused(capsys, tmp_path, f't5x:{source}', f't5x:{tmp_path}/out', 'token_embedder/embedding cannot be read')


def test_unknown_architecture(tmp_path, checkpoints, capsys):
  folder = shutil.copytree(checkpoints / 'hf_switch_tiny', tmp_path / 'h')
  config = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(config | {'model_type': 'bart'}))
  refused(capsys, tmp_path, f'huggingface:{folder}', f't5x:{tmp_path}/out', "model of type 'bart'")


def test_dense_where_switch_is_expected(tmp_path, random_params, write_t5x, capsys):
  folder = write_t5x(tmp_path / 'c', random_params(MODELS['dense']))
  more = '--gin_file=gin/models/switch_tiny.gin'
  refused(capsys, tmp_path, f't5x:{folder}', f'switch_jax:{tmp_path}/out', 'is a dense T5, without experts', more)


def refused_by_huggingface(match, config, **of_moe):
  moe = config.moe and dataclasses.replace(config.moe, **of_moe)
  with pytest.raises(ConfigError, match=f'Hugging Face cannot represent this model.*{match}'):
    huggingface_writer.to_config(dataclasses.replace(config, moe=moe))


def test_untied_switch_models_have_a_table_for_each_stack(tmp_path):
  """transformers 5.23 ties neither of them to the shared one then, and begins with random numbers where they lack."""
  save_own(tmp_path / 'ours', MODELS['c'], with_optimizer=False)
  assert run(f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/theirs') == 0
  tensors = load_file(tmp_path / 'theirs' / 'model.safetensors')
  for stack in ('encoder', 'decoder'):
    np.testing.assert_array_equal(tensors[f'{stack}.embed_tokens.weight'], tensors['shared.weight'])
  assert not np.array_equal(tensors['lm_head.weight'], tensors['shared.weight'])


def test_what_huggingface_cannot_represent(tmp_path, capsys):
  refused_by_huggingface('one input kernel', MODELS['xxl'])
  refused_by_huggingface('only router', MODELS['base'], router='top2')
  refused_by_huggingface('there is one d_ff', MODELS['base'], expert_mlp_dim=9)
  refused_by_huggingface('decoder_layers selects', MODELS['base'], decoder_layers=(0, 1))
  save_own(tmp_path / 'ours', MODELS['xxl'], with_optimizer=False)
  refused(capsys, tmp_path, f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/out', 'wi_0, wi_1')


def test_assumptions_and_overrides_are_printed(tmp_path, source, capsys):
  file = tmp_path / 'o.gin'
  file.write_text(
    'from __gin__ import dynamic_registration\nfrom switch_jax import config\n'
    'FACTOR = 3.0\nconfig.MoeConfig.eval_capacity_factor = %FACTOR\nconfig.OptimizerConfig.beta1 = 0.5\n'
  )
  more = [f'--gin_file={file}', '--gin.FACTOR=5.0', '--gin.config.MoeConfig.sequences_per_group=2']
  assert run(f't5x:{source}', f'switch_jax:{tmp_path}/out', *more) == 0
  out = capsys.readouterr().out
  assert 'given: eval_capacity_factor=5.0, sequences_per_group=2' in out
  assumed = next(line for line in out.splitlines() if line.startswith('  assumed'))
  assert 'train_capacity_factor=1.25' in assumed
  assert 'eval_capacity_factor' not in assumed
  assert interop.load_config('switch_jax', tmp_path / 'out').moe.eval_capacity_factor == 5.0
