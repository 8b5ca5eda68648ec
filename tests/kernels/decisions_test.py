"""Routing's integer decisions: which form a layout gets; those by products are the plain ones, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax import kernels
from switch_jax.kernels.decisions import BY_PRODUCTS, CUMULATIVE, SORTED
from switch_jax.parallel import Layout


def test_the_layout_chooses():
  single = Layout.single_device()
  assert kernels.decisions(single) is SORTED
  for form, expected in (('cumulative', CUMULATIVE), ('products', BY_PRODUCTS)):
    assert kernels.decisions(Layout(single.mesh, kernels=(('positions', form),))) is expected


def test_picking_and_its_gradient():
  values = jax.random.normal(jax.random.key(0), (2, 9, 5))
  expert = jax.random.randint(jax.random.key(1), (2, 9, 3), 0, 5)
  weights = jax.random.normal(jax.random.key(2), expert.shape)
  found = [
    jax.value_and_grad(lambda v, form=form: jnp.sum(form.pick(v, expert) * weights))(values)
    for form in (SORTED, BY_PRODUCTS)
  ]
  np.testing.assert_array_equal(*(form.pick(values, expert) for form in (SORTED, BY_PRODUCTS)))
  np.testing.assert_allclose(found[1][1], found[0][1], atol=1e-6)


@pytest.mark.parametrize(
  ('groups', 'tokens', 'choices', 'experts', 'capacity'),
  [(1, 300, 1, 8, 40), (3, 64, 2, 5, 9), (1, 20_000, 1, 2, 9_000)],
)
def test_slots(groups, tokens, choices, experts, capacity):
  expert = jax.random.randint(jax.random.key(0), (groups, tokens, choices), 0, experts)
  position, _ = SORTED.positions(expert.reshape(groups, -1), experts)
  slot = position.reshape(expert.shape)
  slot = jnp.where(slot < capacity, slot, -1)
  plain, found = (form.slot_index(expert, slot, experts, capacity) for form in (SORTED, BY_PRODUCTS))
  np.testing.assert_array_equal(found.of_choice, plain.of_choice)
  np.testing.assert_array_equal(found.choice_of, plain.choice_of)
