"""Adafactor: optax's on plain matrices, and each expert on its own in a stack."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from switch_jax.config import OptimizerConfig
from switch_jax.training.adafactor import Factoring, factoring, moment_axes, scale_by_adafactor

CONFIG = OptimizerConfig(min_dim_size_to_factor=4)


def gradients(shape, steps=3):
  keys = jax.random.split(jax.random.key(1), steps)
  return [jax.random.normal(key, shape) * (0.1 + i) for i, key in enumerate(keys)]


def updates(parameter, how, in_place=False):
  optimizer = scale_by_adafactor(CONFIG, {'w': how}, (lambda update, parameter, count: update) if in_place else None)
  state, found = optimizer.init({'w': parameter}), []
  for gradient in gradients(parameter.shape):
    update, state = optimizer.update({'w': gradient}, state, {'w': parameter})
    found.append(update['w'])
  return jnp.stack(found), state


@pytest.mark.parametrize('shape', [(6, 8), (8, 6), (5, 5), (3, 8), (7,)], ids=str)
def test_equals_optax_on_one_tensor(shape):
  parameter = jax.random.normal(jax.random.key(0), shape)
  how = factoring(shape, ('embed', 'mlp')[: len(shape)], CONFIG)
  assert how.factored == (len(shape) == 2 and min(shape) >= 4)
  ours, _ = updates(parameter, how)
  peer = optax.chain(
    optax.scale_by_factored_rms(min_dim_size_to_factor=4),
    optax.clip_by_block_rms(1.0),
    optax.scale_by_param_block_rms(),
  )
  state = peer.init(parameter)
  for i, gradient in enumerate(gradients(shape)):
    expected, state = peer.update(gradient, state, parameter)
    np.testing.assert_allclose(ours[i], expected, rtol=2e-5)


@pytest.mark.parametrize('in_place', [False, True])
@pytest.mark.parametrize(
  'names', [('expert', 'embed', 'mlp'), ('layers', 'expert', 'embed', 'mlp'), ('layers', 'embed')]
)
def test_a_stack_equals_its_parts(names, in_place):
  shape = {'layers': 2, 'expert': 3, 'embed': 4, 'mlp': 6}
  shape = tuple(shape[name] for name in names)
  scale = jnp.arange(1.0, 1 + np.prod(shape[: len(names) - 2 or 1])).reshape(shape[: len(names) - 2 or 1])
  parameter = jax.random.normal(jax.random.key(0), shape) * scale.reshape(
    scale.shape + (1,) * (len(shape) - scale.ndim)
  )
  how = factoring(shape, names, CONFIG)
  stacked, _ = updates(parameter, how, in_place)
  alone = dataclasses.replace(how, stack_depth=0)
  optimizer = scale_by_adafactor(CONFIG, alone)
  for index in np.ndindex(*shape[: how.stack_depth]):
    state = optimizer.init(parameter[index])
    for i, gradient in enumerate(gradients(shape)):
      expected, state = optimizer.update(gradient[index], state, parameter[index])
      np.testing.assert_allclose(stacked[(i, *index)], expected, rtol=1e-5)


def test_which_parameters_are_factored():
  assert factoring((512, 64, 256), ('expert', 'embed', 'expert_mlp'), OptimizerConfig()) == Factoring(1, True, -1, True)
  assert factoring((512, 256, 64), ('expert', 'expert_mlp', 'embed'), OptimizerConfig()) == Factoring(1, True, -2, True)
  assert factoring((768, 128), ('embed', None), OptimizerConfig()) == Factoring(0, False, -1)  # the router
  assert factoring((768, 3072), ('embed', 'mlp'), OptimizerConfig()).factored
  assert not factoring((768, 64), ('embed', 'mlp'), OptimizerConfig()).factored
  assert factoring((6, 768, 3072), ('layers', 'embed', 'mlp'), OptimizerConfig()) == Factoring(1, True, -1)
  by_size = OptimizerConfig(factor_experts='by_size')
  assert factoring((512, 128, 256), ('expert', 'embed', 'expert_mlp'), by_size) == Factoring(1, True, -1, True)
  assert factoring((512, 64, 256), ('expert', 'embed', 'expert_mlp'), by_size) == Factoring(1, False, -1, True)


@pytest.mark.parametrize('shape', [(6, 8), (8, 6), (2, 8)], ids=str)
@pytest.mark.parametrize('in_place', [False, True])
def test_by_size_one_expert_is_a_dense_matrix(shape, in_place):
  config = dataclasses.replace(CONFIG, factor_experts='by_size')
  dense = factoring(shape, ('embed', 'mlp'), config)
  expert = factoring((1, *shape), ('expert', 'expert_embed', 'expert_mlp'), config)
  assert (expert.stack_depth, expert.factored, expert.largest) == (1, dense.factored, dense.largest)
  parameter = jax.random.normal(jax.random.key(0), shape)
  found, _ = updates(parameter[None], expert, in_place)
  np.testing.assert_allclose(found[:, 0], updates(parameter, dense, in_place)[0], rtol=1e-5)


def test_moments_keep_the_axes_of_t5x():
  """A row averages the longer side away: released checkpoints have v_row (E, D) and v_col (E, F) for both kernels."""
  wi = factoring((4, 8, 16), ('expert', 'embed', 'expert_mlp'), CONFIG)
  assert moment_axes(('expert', 'embed', 'expert_mlp'), wi) == {
    'v_row': ('expert', 'embed'), 'v_col': ('expert', 'expert_mlp')
  }  # fmt: skip
  wo = factoring((4, 16, 8), ('expert', 'expert_mlp', 'embed'), CONFIG)
  assert moment_axes(('expert', 'expert_mlp', 'embed'), wo) == {
    'v_row': ('expert', 'embed'), 'v_col': ('expert', 'expert_mlp')
  }  # fmt: skip
  state = updates(jnp.ones((4, 16, 8)), wo)[1]
  assert {name: x.shape for name, x in state.moments['w'].items()} == {'v_row': (4, 8), 'v_col': (4, 16)}
