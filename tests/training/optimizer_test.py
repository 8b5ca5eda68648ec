"""Learning rates, updates, and where the optimizer's state lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.config import MeshConfig, OptimizerConfig
from switch_jax.parallel import Layout, make_mesh
from switch_jax.training.optimizer import make_optimizer, make_schedule, state_shardings


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    (dict(learning_rate=2.0, warmup_steps=4), {0: 1.0, 4: 1.0, 16: 0.5, 100: 0.2}),
    (dict(schedule='constant', learning_rate=0.3, warmup_steps=0), {0: 0.3, 100: 0.3}),
    (dict(schedule='constant', learning_rate=0.3, warmup_steps=3), {0: 0.0, 1: 0.1, 3: 0.3, 100: 0.3}),
    (
      dict(schedule='linear', learning_rate=0.4, warmup_steps=4, decay_steps=12),
      {0: 0.0, 2: 0.2, 4: 0.4, 8: 0.2, 12: 0.0, 20: 0.0},
    ),
    (dict(schedule='linear', learning_rate=0.4, warmup_steps=0, decay_steps=8), {0: 0.4, 2: 0.3, 8: 0.0}),
  ],
)
def test_learning_rates(fields, expected):
  schedule = make_schedule(OptimizerConfig(**fields))
  found = {step: float(schedule(step)) for step in expected}
  assert found == pytest.approx(expected, abs=1e-7)


PARAMS = {'w': jnp.full((4, 2), 2.0), 'b': jnp.zeros(2)}
AXES = {'w': ('embed', 'mlp'), 'b': (None,)}


def test_adamw():
  """Two steps by hand: bias-corrected moments, decay beside the update."""
  config = OptimizerConfig(
    name='adamw', learning_rate=0.1, schedule='constant', warmup_steps=0, beta1=0.9, beta2=0.99, epsilon=1e-8,
    weight_decay=0.5,
  )  # fmt: skip
  optimizer = make_optimizer(config, PARAMS, AXES, Layout.single_device())
  params, state = PARAMS, optimizer.init(PARAMS)
  w, mean, square = 2.0, 0.0, 0.0
  for number, gradient in enumerate((3.0, -1.0), 1):
    params, state = optimizer.apply({'w': jnp.full((4, 2), gradient), 'b': jnp.zeros(2)}, state, params)
    mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
    w -= 0.1 * (mean / (1 - 0.9**number) / np.sqrt(square / (1 - 0.99**number)) + 0.5 * w)
    np.testing.assert_allclose(params['w'], w, rtol=1e-5)
  np.testing.assert_array_equal(params['b'], 0)


@pytest.mark.parametrize('name', ['adamw', 'adafactor'])
def test_state_lies_as_its_parameters(name):
  layout = Layout(make_mesh(MeshConfig(data=2, model=4), None))
  config = OptimizerConfig(name=name, min_dim_size_to_factor=2)
  shapes = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=layout.sharding(*AXES[name]))
    for name, shape in {'w': (16, 8), 'b': (8,)}.items()
  }
  optimizer = make_optimizer(config, shapes, AXES, layout)
  found = state_shardings(config, optimizer, shapes, AXES, layout)
  specs = {
    jax.tree_util.keystr(path[1:]): tuple(sharding.spec)
    for path, sharding in jax.tree_util.tree_leaves_with_path(found)
  }
  split, whole = (None, 'model'), (None,)
  expected = (
    {".mu['w']": split, ".nu['w']": split, ".mu['b']": whole, ".nu['b']": whole, '.count': ()}
    if name == 'adamw'
    else {".moments['w']['v_row']": ('model',), ".moments['w']['v_col']": whole, ".moments['b']['v']": whole,
          '.count': ()}
  )  # fmt: skip
  assert specs == expected


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
