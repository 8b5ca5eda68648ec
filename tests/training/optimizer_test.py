"""Learning rates, updates, and where the optimizer's state lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.config import MeshConfig, OptimizerConfig
from switch_jax.parallel import Layout, make_mesh
from switch_jax.training.optimizer import make_optimizer


@pytest.mark.parametrize('weight_decay', [0.0, 0.1])
@pytest.mark.parametrize('max_grad_norm', [None, 0.5])
def test_parameters_written_in_place_are_those_of_added_updates(weight_decay, max_grad_norm):
  """One CPU device writes over the parameters, eight add updates to them: same numbers, same tree of state."""
  config = OptimizerConfig(
    min_dim_size_to_factor=4, schedule='linear', warmup_steps=1, decay_steps=9, weight_decay=weight_decay,
    max_grad_norm=max_grad_norm,
  )  # fmt: skip
  params = {'w': jax.random.normal(jax.random.key(0), (8, 4, 6)), 'b': jnp.ones((6,))}
  axes = {'w': ('expert', 'expert_embed', 'expert_mlp'), 'b': (None,)}
  results = []
  for layout in (Layout.single_device(), Layout(make_mesh(MeshConfig(), 8))):
    optimizer = make_optimizer(config, params, axes, layout)
    new, state = params, optimizer.init(params)
    for key in jax.random.split(jax.random.key(1), 3):
      new, state = jax.jit(optimizer.apply)({'w': jax.random.normal(key, (8, 4, 6)), 'b': jnp.arange(6.0)}, state, new)
    results.append((new, state))
  assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-7), *results)
