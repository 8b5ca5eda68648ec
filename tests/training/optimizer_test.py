"""Updates, and where the optimizer's state lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.config import ConfigError, MeshConfig, OptimizerConfig
from switch_jax.parallel import Layout, make_mesh
from switch_jax.training.optimizer import make_optimizer, state_shardings

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


@pytest.fixture
def own(tmp_path, monkeypatch):
  """Writes the module of the user."""
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'my_optimizers.py').write_text("""
import jax, optax

def lion(config, schedule):
  return optax.lion(schedule, weight_decay=config.weight_decay)

def factored(config, schedule):
  return optax.adafactor(schedule, min_dim_size_to_factor=4)

def growing(config, schedule):
  return optax.GradientTransformation(lambda params: (), lambda updates, state, params: (updates, (1,)))

def summed(config, schedule):
  return optax.stateless(lambda updates, params: jax.tree.map(lambda x: x.sum(), updates))
""")


def test_an_own_optimizer(own):
  config = OptimizerConfig(name='my_optimizers:lion', schedule='constant', warmup_steps=0, learning_rate=0.1)
  optimizer = make_optimizer(config, PARAMS, AXES, Layout.single_device())
  params, _ = optimizer.apply({'w': jnp.full((4, 2), 3.0), 'b': jnp.zeros(2)}, optimizer.init(PARAMS), PARAMS)
  np.testing.assert_allclose(params['w'], 1.9, rtol=1e-6)


def test_what_an_own_optimizer_keeps_smaller_lies_everywhere(own):
  layout = Layout(make_mesh(MeshConfig(data=2, model=4), None))
  config = OptimizerConfig(name='my_optimizers:factored')
  shape = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=layout.sharding('embed', 'mlp'))
  optimizer = make_optimizer(config, {'w': shape}, {'w': ('embed', 'mlp')}, layout)
  found = state_shardings(config, optimizer, {'w': shape}, {'w': ('embed', 'mlp')}, layout)
  assert all(not any(sharding.spec) for sharding in jax.tree.leaves(found))


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('my_optimizers:adam', 'there is no adam in my_optimizers'),
    ('my_optimizers:growing', r'whose update\(\) returns state of other shapes'),
    ('my_optimizers:summed', r'whose update\(\) returns updates of other shapes'),
    ('optax:sgd', r'which failed \('),
  ],
)
def test_an_own_optimizer_that_cannot_be_used(own, name, message):
  with pytest.raises(ConfigError, match=message):
    make_optimizer(OptimizerConfig(name=name), PARAMS, AXES, Layout.single_device())
