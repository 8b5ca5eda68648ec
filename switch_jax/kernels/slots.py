"""Rows to slots and back, by integer index. Pure functions on the tokens of one shard.

Axes: g groups, s tokens of a group, k choices, e experts, c slots of an expert in a group, d width.

A row-moving gather whose backward pass is a scatter would be slow on every machine. Each slot holds one token and each
choice of a token has one slot, so both directions are gathers here, and the custom derivatives say so.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

# Of an integer that goes through a bfloat16 product at a time.
_BITS = 7


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotIndex:
  """The routing of a shard as two integer maps that are inverse to each other.

  Attributes:
    of_choice: int32 `[g * s, k]`, the row among the e * g * c slots that a token's choice got; the number of slots
      where it got none.
    choice_of: int32 `[e * g * c]`, which of the g * s * k choices fills the slot; the number of choices where it is
      empty.
  """

  of_choice: jax.Array
  choice_of: jax.Array


def slot_index(expert: jax.Array, slot: jax.Array, num_experts: int, capacity: int) -> SlotIndex:
  """Numbers the slots `[expert, group, slot]` of a shard and inverts the routing.

  Args:
    expert: int32 `[g, s, k]`, the experts of each token.
    slot: int32 `[g, s, k]`, its slot there; -1 where it got none.
    num_experts: e.
    capacity: c.
  """
  of_choice = _row_of_choice(expert, slot, num_experts, capacity)
  every_choice = jnp.arange(of_choice.size, dtype=jnp.int32)
  empty = jnp.full((num_experts * expert.shape[0] * capacity,), of_choice.size, jnp.int32)
  choice_of = empty.at[of_choice.reshape(-1)].set(every_choice, mode='drop', unique_indices=True)
  return SlotIndex(of_choice, choice_of)


def slot_index_by_products(expert: jax.Array, slot: jax.Array, num_experts: int, capacity: int) -> SlotIndex:
  """`slot_index` without its scatter, for TPUs: the numbers of the choices pass through products of one-hots.

  A slot is the sum over the choices of [its expert] x [its place] x (number + 1), of which one is not zero, so it is
  exact: seven bits of the number at a time, which bfloat16 holds.
  """
  groups, tokens, choices = expert.shape
  count = tokens * choices
  by_expert = jax.nn.one_hot(expert.reshape(groups, count), num_experts, dtype=jnp.bfloat16)
  here = slot.reshape(groups, count, 1) == jnp.arange(capacity, dtype=jnp.int32)
  number = jnp.arange(1, count + 1, dtype=jnp.int32)[None, :, None]  # 0 is for an empty slot
  found = jnp.zeros((num_experts, groups, capacity), jnp.int32)
  for shift in range(0, count.bit_length(), _BITS):
    part = jnp.where(here, (number >> shift) & (2**_BITS - 1), 0).astype(jnp.bfloat16)
    part = jnp.einsum('gne,gnc->egc', by_expert, part, preferred_element_type=jnp.float32)
    found += part.astype(jnp.int32) << shift
  first = count * jnp.arange(groups, dtype=jnp.int32)[None, :, None]
  choice_of = jnp.where(found > 0, found - 1 + first, groups * count).reshape(-1)
  return SlotIndex(_row_of_choice(expert, slot, num_experts, capacity), choice_of)


def _row_of_choice(expert: jax.Array, slot: jax.Array, num_experts: int, capacity: int) -> jax.Array:
  groups, tokens, choices = expert.shape
  group = jnp.arange(groups, dtype=jnp.int32)[:, None, None]
  row = (expert * groups + group) * capacity + slot
  return jnp.where(slot >= 0, row, num_experts * groups * capacity).reshape(groups * tokens, choices)


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
  """Gathers rows; indices past the end give the last row (callers weigh it with 0)."""
  return jnp.take(x, index, axis=0, mode='clip')


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def to_slots(x: jax.Array, index: SlotIndex, choices: int) -> jax.Array:
  """Copies tokens `[g * s, d]` into their slots `[e * g * c, d]`.

  Empty slots hold some token's row: no output is read from them, and no gradient comes back to them.
  """
  return _rows(x, index.choice_of // choices)


def _to_slots_forward(x, index, choices):
  return to_slots(x, index, choices), index


def _to_slots_backward(choices, index, gradient):
  del choices
  got_slot = index.of_choice < gradient.shape[0]
  rows = jnp.where(got_slot[..., None], _rows(gradient, index.of_choice), 0)  # [g * s, k, d]
  return jnp.sum(rows, axis=1), None


to_slots.defvjp(_to_slots_forward, _to_slots_backward)


@jax.custom_vjp
def from_slots(y: jax.Array, gate: jax.Array, index: SlotIndex) -> jax.Array:
  """Adds up the outputs `[e * g * c, d]` of each token's experts, weighted by the float32 gates `[g * s, k]`.

  Returns:
    `[g * s, d]` in the dtype of `y`; zero for a token without a slot.
  """
  got_slot = index.of_choice < y.shape[0]
  rows = jnp.where(got_slot[..., None], _rows(y, index.of_choice), 0)  # [g * s, k, d]
  return jnp.sum(rows.astype(jnp.float32) * gate[..., None], axis=1).astype(y.dtype)


def _from_slots_forward(y, gate, index):
  return from_slots(y, gate, index), (y, gate, index)


def _from_slots_backward(residuals, gradient):
  y, gate, index = residuals
  num_choices = gate.shape[1]
  gate_of_slot = jnp.take(gate.reshape(-1), index.choice_of, mode='fill', fill_value=0.0)
  to_expert = _rows(gradient, index.choice_of // num_choices).astype(jnp.float32) * gate_of_slot[:, None]
  rows = _rows(y, index.of_choice).astype(jnp.float32)  # [g * s, k, d]
  to_gate = jnp.einsum('nkd,nd->nk', rows, gradient.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
  to_gate = jnp.where(index.of_choice < y.shape[0], to_gate, 0.0)
  return to_expert.astype(y.dtype), to_gate, None


from_slots.defvjp(_from_slots_forward, _from_slots_backward)
