"""Adafactor's second moments: rows and columns change places where T5X goes by the axes' names."""

import numpy as np
import pytest

from switch_jax import interop
from switch_jax.config import OptimizerConfig
from switch_jax.interop import moments
from switch_jax.training.adafactor import factoring
from tests.interop.own_checkpoints import MODELS, run, save_own


def test_rows_and_columns_of_moments_belong_to_the_same_axes_as_in_t5x():
  """T5X averages the hidden axis of experts in v_row whatever the sizes; a matrix alone by length."""
  axes = {'wi': ('expert', 'embed', 'expert_mlp'), 'wo': ('expert', 'expert_mlp', 'embed')}
  for embed, hidden in ((10, 7), (7, 10), (8, 8)):
    shapes = {'wi': (3, embed, hidden), 'wo': (3, hidden, embed)}
    for kernel, shape in shapes.items():
      name = f'encoder/layers_1/mlp/expert/{kernel}/kernel'
      ours = factoring(shape, axes[kernel], OptimizerConfig())
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


@pytest.mark.parametrize('shape', [(3, 10, 7), (3, 7, 10), (3, 8, 8)])
@pytest.mark.parametrize('kernel', ['mlp/expert/wi', 'mlp/expert/wo', 'attention/query_key_value/expert/query'])
def test_an_exchange_there_and_back_changes_nothing(shape, kernel):
  """Experts in attention, which T5X does not have, keep our order."""
  name, slots = f'encoder/layers_1/{kernel}/kernel', {'v_row': 'rows', 'v_col': 'columns'}
  there = moments.exchange({name: slots}, {name: shape})
  assert moments.exchange(there, {name: shape}) == {name: slots}
  if 'attention' in kernel:
    assert there == {name: slots}


def test_shapes_of_slots_are_those_of_the_axes_that_are_left():
  wo, factored = 'encoder/layers_1/mlp/expert/wo/kernel', {'v_row': None, 'v_col': None}
  assert moments.expected_shapes(wo, (3, 7, 10), factored) == {'v_row': (3, 10), 'v_col': (3, 7)}
  assert moments.expected_shapes('token_embedder/embedding', (9, 5), factored) == {'v_row': (5,), 'v_col': (9,)}
  assert moments.expected_shapes('token_embedder/embedding', (9, 5), {'v': None}) == {'v': (9, 5)}
