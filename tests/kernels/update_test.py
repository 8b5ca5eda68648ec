"""A stack of matrices updated a few at a time is the stack updated at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.kernels import update


@pytest.mark.parametrize(('group_bytes', 'groups'), [(2 << 20, 1), (3 * 4 * 5 * 4, 2), (1, 6)])
def test_a_few_matrices_after_the_other(monkeypatch, group_bytes, groups):
  monkeypatch.setattr(update, '_GROUP_BYTES', group_bytes)
  assert 6 // update.group_size(6, 4 * 5 * 4) == groups
  parameter, gradient = jax.random.normal(jax.random.key(0), (2, 3, 4, 5)), jnp.ones((2, 3, 4, 5)) * 0.5
  norms = jnp.zeros((2, 3))

  def some(gradient, kept):
    parameter, _ = kept
    return parameter - gradient, jnp.sum(jnp.square(parameter), axis=(1, 2))

  run = jax.jit(lambda g, kept: update.in_place(some, 2, g, kept, update.first_turn(g)))
  new, norms = run(gradient, (parameter, norms))
  np.testing.assert_allclose(new, parameter - 0.5, rtol=1e-6)
  np.testing.assert_allclose(norms, jnp.sum(jnp.square(parameter), axis=(2, 3)), rtol=1e-6)


def test_the_first_turn_is_the_first_one():
  assert update.first_turn({'a': jnp.ones(3), 'b': -jnp.ones(2)}) == 0
