"""Rows to slots and back: the two maps are inverse, both directions are gathers, and their derivatives are right."""

import jax
import jax.numpy as jnp
import numpy as np

from switch_jax.kernels import from_slots, to_slots
from switch_jax.kernels.slots import slot_index

# Two groups of three tokens, one choice each, two experts of one slot: (group 0) tokens 0 and 2 get slots.
EXPERT = jnp.array([[[0], [0], [1]], [[1], [1], [0]]], jnp.int32)
SLOT = jnp.array([[[0], [-1], [0]], [[0], [-1], [0]]], jnp.int32)


def test_the_index_and_its_inverse():
  index = slot_index(EXPERT, SLOT, num_experts=2, capacity=1)
  np.testing.assert_array_equal(index.of_choice[:, 0], [0, 4, 2, 3, 4, 1])  # 4: no slot
  np.testing.assert_array_equal(index.choice_of, [0, 5, 2, 3])


def test_there_and_back():
  index = slot_index(EXPERT, SLOT, num_experts=2, capacity=1)
  x = jnp.arange(12.0).reshape(6, 2)
  gate = jnp.array([[1.0], [1.0], [2.0], [1.0], [1.0], [0.5]])
  slots = to_slots(x, index, 1)
  np.testing.assert_array_equal(slots, x[jnp.array([0, 5, 2, 3])])
  expected = x * jnp.array([1.0, 0, 2, 1, 0, 0.5])[:, None]  # tokens 1 and 4 got no slot
  np.testing.assert_array_equal(from_slots(slots, gate, index), expected)


def test_derivatives_are_those_of_the_functions_without_a_scatter_of_rows():
  index = slot_index(EXPERT, SLOT, num_experts=2, capacity=1)
  x, gate = jax.random.normal(jax.random.key(0), (6, 2)), jax.random.uniform(jax.random.key(1), (6, 1))

  def loss(x, gate):
    return jnp.sum(jnp.sin(from_slots(jnp.tanh(to_slots(x, index, 1)), gate, index)))

  def plainly(x, gate):
    got = (index.of_choice < 4)[:, 0]
    return jnp.sum(jnp.where(got[:, None], jnp.sin(jnp.tanh(x) * gate), 0.0))

  found, expected = (jax.grad(f, argnums=(0, 1))(x, gate) for f in (loss, plainly))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
  assert 'scatter' not in str(jax.make_jaxpr(jax.grad(loss))(x, gate)).replace('scatter_dimension', '')
