"""Checkpoints of our own from our own: every model we can train, restacked, with or without its optimizer's state."""

import dataclasses

import jax
import numpy as np
import pytest

from switch_jax import interop
from switch_jax.checkpoints import CheckpointStore
from tests.interop.own_checkpoints import ATTENTION, MODELS, assert_same, run, save_own, state_of


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('experts', ATTENTION)
def test_experts_in_attention_come_back(tmp_path, experts, scan):
  """Parameters and Adafactor's moments, stacked otherwise and back again, bit for bit."""
  config = dataclasses.replace(ATTENTION[experts], scan_layers=scan)
  state = save_own(tmp_path / 'ours', config)
  assert run(f'switch_jax:{tmp_path}/ours', f'switch_jax:{tmp_path}/other', f'--gin.scan_layers={not scan}') == 0
  assert run(f'switch_jax:{tmp_path}/other', f'switch_jax:{tmp_path}/again', f'--gin.scan_layers={scan}') == 0
  assert_same(state_of(tmp_path / 'again'), state_of(tmp_path / 'ours'))
  other_config, other = interop.load('switch_jax', tmp_path / 'other', scan_layers=scan)
  assert other_config == config
  assert_same(other, state.params)


def test_values_of_moments_go_with_their_parameters(tmp_path):
  """Separate layers of a scanned model: row b of a block's moments is those of its layer."""
  state = save_own(tmp_path / 'ours', dataclasses.replace(ATTENTION['mlp'], scan_layers=True))
  assert run(f'switch_jax:{tmp_path}/ours', f'switch_jax:{tmp_path}/other', '--gin.scan_layers=False') == 0
  block = state.opt_state[0].moments['decoder']['blocks']['layers_1']['self_attention']['query_key_value']['expert']
  moments = state_of(tmp_path / 'other')['opt_state'][0]['moments']['decoder']
  for row, layer in enumerate((1, 3)):
    one = jax.tree.map(lambda array, row=row: array[row], block)
    assert_same(moments[f'layers_{layer}']['self_attention']['query_key_value']['expert'], one)


def test_the_record_stays_and_the_optimizer_goes(tmp_path):
  save_own(tmp_path / 'ours', MODELS['base'])
  assert run(f'switch_jax:{tmp_path}/ours', f'switch_jax:{tmp_path}/out', '--optimizer_state=drop') == 0
  state = state_of(tmp_path / 'out')
  assert state.keys() == {'step', 'params'}
  np.testing.assert_array_equal(state['step'], 9)
  record = CheckpointStore(tmp_path / 'out').read_config(9)
  assert (record['vocabulary'], record['identity']) == ({'size': 11}, {'a': 1})
  assert record['model'] == MODELS['base'].to_json()
