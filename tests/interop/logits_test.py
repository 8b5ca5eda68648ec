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
