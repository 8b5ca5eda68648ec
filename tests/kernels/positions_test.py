"""Positions in the experts' queues: both forms, and which one a layout gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax import kernels
from switch_jax.kernels.positions import positions_cumulative, positions_sorted
from switch_jax.parallel import Layout

FORMS = {'cumulative': positions_cumulative, 'sorted': positions_sorted}


@pytest.mark.parametrize('form', FORMS)
def test_positions_count_earlier_mentions(form):
  expert = jnp.array([[1, 0, 1, 1, 2, 0], [2, 2, 2, 2, 2, 2]], jnp.int32)  # 2 stands for "none"
  positions, counts = FORMS[form](expert, 2)
  np.testing.assert_array_equal(positions[0, jnp.array([0, 1, 2, 3, 5])], [0, 0, 1, 2, 1])
  np.testing.assert_array_equal(counts, [[2, 3], [0, 0]])
  assert positions.dtype == counts.dtype == jnp.int32


def test_the_forms_are_equal():
  expert = jax.random.randint(jax.random.key(0), (3, 50), 0, 8)  # 7 experts and "none"
  (a, counts), (b, others) = (form(expert, 7) for form in FORMS.values())
  np.testing.assert_array_equal(counts, others)
  np.testing.assert_array_equal(np.where(expert < 7, a, 0), np.where(expert < 7, b, 0))


def test_the_layout_chooses():
  single = Layout.single_device()
  assert kernels.positions(single) is positions_sorted
  assert kernels.positions(Layout(single.mesh, kernels=(('positions', 'cumulative'),))) is positions_cumulative
