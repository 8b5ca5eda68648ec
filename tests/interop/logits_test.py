"""Reader and model together: the logits of loaded checkpoints are those of the software that wrote them."""

import numpy as np
import pytest

from switch_jax import interop
from switch_jax.inference import compute_logits

# Float32 sums in another order, through up to 11 layers; one token routed differently makes differences above 0.1.
TOLERANCE = 1e-4


@pytest.mark.parametrize(
  ('format', 'folder', 'overrides', 'name'),
  [
    ('huggingface', 'hf_switch_tiny', {}, 'logits_capacity_64'),
    ('huggingface', 'hf_switch_tiny', {'expert_capacity': None, 'eval_capacity_factor': None}, 'logits_capacity_64'),
    ('huggingface', 'hf_switch_tiny', {'expert_capacity': 3}, 'logits_capacity_3'),
    ('huggingface', 'hf_switch_every_third', {}, 'logits'),
    ('huggingface', 'hf_switch_untied_bf16_shards', {}, 'logits'),
    ('t5x', 't5x_switch_base_tiny', {'sequences_per_group': 1}, 'logits'),
    ('t5x', 't5x_switch_base_tiny', {'sequences_per_group': 1, 'scan_layers': True}, 'logits'),
  ],
)
def test_logits(checkpoints, format, folder, overrides, name):
  config, params = interop.load(format, checkpoints / folder, **overrides)
  with np.load(checkpoints / folder / 'outputs.npz') as outputs:
    expected = outputs[name]
    tokens = [outputs[f'{stack}_input_tokens'] for stack in ('encoder', 'decoder')]
  logits = np.asarray(compute_logits(config, params, *tokens))
  assert logits.dtype == np.float32
  np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


def test_capacity_matters(checkpoints):
  """The tolerance tells dropping from not dropping: otherwise the test above would pass for either."""
  with np.load(checkpoints / 'hf_switch_tiny' / 'outputs.npz') as outputs:
    assert np.abs(outputs['logits_capacity_64'] - outputs['logits_capacity_3']).max() > 1


@pytest.mark.parametrize('family', ['xxl', 'c'])
def test_families_without_a_checkpoint(checkpoints, tmp_path, write_t5x, family):
  """The capacities that are assumed of XXL and C are those of flaxformer's configuration; nothing is overridden."""
  with np.load(checkpoints / f'flaxformer_switch_{family}_tiny.npz') as saved:
    arrays = dict(saved)
  expected = arrays.pop('logits')
  tokens = [arrays.pop(f'{stack}_input_tokens') for stack in ('encoder', 'decoder')]
  config, params = interop.load('t5x', write_t5x(tmp_path / 'c', arrays), sequences_per_group=1)
  logits = np.asarray(compute_logits(config, params, *tokens))
  np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('rows', ['full', 'padded'])
def test_groups_of_two_rows(checkpoints, rows):
  folder = checkpoints / 't5x_switch_base_tiny'
  config, params = interop.load('t5x', folder, sequences_per_group=2)
  with np.load(folder / 'outputs_two_rows_a_group.npz') as outputs:
    expected, targets = outputs[f'{rows}_logits'], outputs[f'{rows}_decoder_target_tokens']
    tokens = [outputs[f'{rows}_{stack}_input_tokens'] for stack in ('encoder', 'decoder')]
  logits = np.asarray(compute_logits(config, params, *tokens))[..., : expected.shape[-1]]
  np.testing.assert_allclose(logits[targets > 0], expected[targets > 0], rtol=0, atol=TOLERANCE)
