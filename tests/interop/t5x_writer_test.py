"""T5X checkpoints that we write: what they hold comes back bit for bit."""

import shutil

import ml_dtypes
import msgpack
import numpy as np
import pytest
from safetensors.numpy import load_file

from switch_jax import interop
from switch_jax.config import ConfigError
from tests.interop.own_checkpoints import ATTENTION, MODELS, assert_same, refused, run, save_own, state_of


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


def test_experts_in_attention_have_no_name_there(tmp_path, capsys):
  save_own(tmp_path / 'ours', ATTENTION['linear'])
  message = 'MoeConfig.encoder_attention_layers is 2; T5X and Hugging Face have no names for experts in attention.'
  refused(capsys, tmp_path, f'switch_jax:{tmp_path}/ours', f't5x:{tmp_path}/out', message)
