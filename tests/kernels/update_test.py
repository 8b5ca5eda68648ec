"""A stack of matrices updated one after the other is the stack updated at once."""

import jax
import jax.numpy as jnp
import numpy as np

from switch_jax.kernels import update


def test_one_matrix_after_the_other():
  parameter, gradient = jax.random.normal(jax.random.key(0), (2, 3, 4, 5)), jnp.ones((2, 3, 4, 5)) * 0.5
  norms = jnp.zeros((2, 3))

  def one(gradient, kept):
    parameter, _ = kept
    return parameter - gradient, jnp.sum(jnp.square(parameter))

  run = jax.jit(lambda g, kept: update.in_place(one, 2, g, kept, update.first_turn(g)))
  new, norms = run(gradient, (parameter, norms))
  np.testing.assert_allclose(new, parameter - 0.5, rtol=1e-6)
  np.testing.assert_allclose(norms, jnp.sum(jnp.square(parameter), axis=(2, 3)), rtol=1e-6)


def test_the_first_turn_is_the_first_one():
  assert update.first_turn({'a': jnp.ones(3), 'b': -jnp.ones(2)}) == 0
