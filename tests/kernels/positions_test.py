"""Positions in the experts' queues: both forms, and which one a layout gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.kernels.positions import positions_by_products, positions_cumulative, positions_sorted

FORMS = {'cumulative': positions_cumulative, 'sorted': positions_sorted, 'products': positions_by_products}


@pytest.mark.parametrize('form', FORMS)
def test_positions_count_earlier_mentions(form):
  expert = jnp.array([[1, 0, 1, 1, 2, 0], [2, 2, 2, 2, 2, 2]], jnp.int32)  # 2 stands for "none"
  positions, counts = FORMS[form](expert, 2)
  np.testing.assert_array_equal(positions[0, jnp.array([0, 1, 2, 3, 5])], [0, 0, 1, 2, 1])
  np.testing.assert_array_equal(counts, [[2, 3], [0, 0]])
  assert positions.dtype == counts.dtype == jnp.int32


@pytest.mark.parametrize(('length', 'num_experts'), [(50, 7), (128, 3), (1000, 7), (4097, 2), (300, 200)])
@pytest.mark.parametrize('form', ['sorted', 'products'])
def test_the_forms_are_equal(form, length, num_experts):
  expert = jax.random.randint(jax.random.key(0), (3, length), 0, num_experts + 1)  # and "none"
  (a, counts), (b, others) = (FORMS[name](expert, num_experts) for name in ('cumulative', form))
  np.testing.assert_array_equal(counts, others)
  named = expert < num_experts
  np.testing.assert_array_equal(np.where(named, a, 0), np.where(named, b, 0))


def test_one_queue_of_all():
  """All choices of one expert: the largest counts."""
  position, counts = positions_by_products(jnp.zeros((1, 40_000), jnp.int32), 1)
  np.testing.assert_array_equal(position[0], np.arange(40_000))
  np.testing.assert_array_equal(counts, [[40_000]])
