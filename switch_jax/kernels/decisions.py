"""The integer decisions of routing in the forms that machines want: whose turn it is, which gate, which slot."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from switch_jax.kernels.positions import Positions, positions_by_products, positions_cumulative, positions_sorted
from switch_jax.kernels.slots import SlotIndex, slot_index, slot_index_by_products
from switch_jax.kernels.table import forms
from switch_jax.parallel import Layout


@dataclasses.dataclass(frozen=True)
class Decisions:
  """One form; all forms decide the same.

  Attributes:
    positions: where each choice stands in its expert's queue.
    pick: (values `[g, s, e]`, int32 `[g, s, k]` experts) to the values `[g, s, k]` of these experts.
    slot_index: see `slots.slot_index`.
  """

  positions: Positions
  pick: Callable[[jax.Array, jax.Array], jax.Array]
  slot_index: Callable[[jax.Array, jax.Array, int, int], SlotIndex]


def _pick(values: jax.Array, expert: jax.Array) -> jax.Array:
  return jnp.take_along_axis(values, expert, axis=-1)


def _pick_by_masks(values: jax.Array, expert: jax.Array) -> jax.Array:
  """As `_pick`; backwards it is a product with a mask and no scatter."""
  experts = jnp.arange(values.shape[-1], dtype=expert.dtype)
  parts = [jnp.sum(jnp.where(expert[..., k, None] == experts, values, 0), axis=-1) for k in range(expert.shape[-1])]
  return jnp.stack(parts, axis=-1)


CUMULATIVE = Decisions(positions_cumulative, _pick, slot_index)
SORTED = Decisions(positions_sorted, _pick, slot_index)
BY_PRODUCTS = Decisions(positions_by_products, _pick_by_masks, slot_index_by_products)


def decisions(layout: Layout) -> Decisions:
  """Returns the form for a layout's devices."""
  return {'cumulative': CUMULATIVE, 'sorted': SORTED, 'products': BY_PRODUCTS}[forms(layout)['positions']]
