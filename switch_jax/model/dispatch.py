"""Movement: tokens into expert slots and back. Pure functions on the tokens of one shard.

Axes: g groups, s tokens of a group, k choices, e experts, c slots of an expert in a group, d width. Two forms of the
same thing: `slots` moves rows by integer index; `einsum` multiplies with one-hot matrices, as the paper's code does,
and is the reference.

A row-moving gather whose backward pass is a scatter would be slow on every machine. Each slot holds one token and each
choice of a token has one slot, so both directions are gathers here, and the custom derivatives say so.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from switch_jax.model.routing import Routing


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


def slot_index(routing: Routing, num_experts: int, capacity: int) -> SlotIndex:
  """Numbers the slots `[expert, group, slot]` of a shard and inverts the routing."""
  groups, tokens, choices = routing.expert.shape
  num_slots = num_experts * groups * capacity
  group = jnp.arange(groups, dtype=jnp.int32)[:, None, None]
  row = (routing.expert * groups + group) * capacity + routing.slot
  of_choice = jnp.where(routing.slot >= 0, row, num_slots).reshape(groups * tokens, choices)
  every_choice = jnp.arange(of_choice.size, dtype=jnp.int32)
  empty = jnp.full((num_slots,), of_choice.size, jnp.int32)
  choice_of = empty.at[of_choice.reshape(-1)].set(every_choice, mode='drop', unique_indices=True)
  return SlotIndex(of_choice, choice_of)


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


def one_hot_dispatch(routing: Routing, num_experts: int, capacity: int) -> tuple[jax.Array, jax.Array]:
  """Returns the paper's dispatch and combine tensors, float32 `[g, s, e, c]`: who goes where, and with which gate."""
  expert = jax.nn.one_hot(routing.expert, num_experts, dtype=jnp.float32)  # [g, s, k, e]
  slot = jax.nn.one_hot(routing.slot, capacity, dtype=jnp.float32)  # [g, s, k, c]; -1 is all zeros
  dispatch = jnp.einsum('gske,gskc->gsec', expert, slot)
  return dispatch, jnp.einsum('gske,gskc,gsk->gsec', expert, slot, routing.gate)


def einsum_to_slots(x: jax.Array, dispatch: jax.Array) -> jax.Array:
  """Copies tokens `[g, s, d]` into slots `[e, g * c, d]` by a one-hot product."""
  slots = jnp.einsum('gsd,gsec->egcd', x, dispatch.astype(x.dtype))
  return slots.reshape(slots.shape[0], -1, slots.shape[-1])


def einsum_from_slots(y: jax.Array, combine: jax.Array) -> jax.Array:
  """Adds up expert outputs `[e, g * c, d]` into tokens `[g, s, d]` by a product with the combine tensor."""
  groups, _, num_experts, capacity = combine.shape
  y = y.reshape(num_experts, groups, capacity, y.shape[-1])
  out = jnp.einsum('egcd,gsec->gsd', y.astype(jnp.float32), combine, precision=jax.lax.Precision.HIGHEST)
  return out.astype(y.dtype)


def to_expert_shards(slots: jax.Array, num_shards: int, axes: tuple[str, ...]) -> jax.Array:
  """Sends the slots `[e, n, d]` of all experts to the shards that hold them: `[e / shards, shards * n, d]`.

  Args:
    slots: what the local tokens put into the slots of all experts.
    num_shards: shards that the experts are split into.
    axes: the mesh axes of those shards.
  """
  if num_shards == 1:
    return slots
  return jax.lax.all_to_all(slots, axes, split_axis=0, concat_axis=1, tiled=True)


def from_expert_shards(slots: jax.Array, num_shards: int, axes: tuple[str, ...]) -> jax.Array:
  """The inverse of `to_expert_shards`."""
  if num_shards == 1:
    return slots
  return jax.lax.all_to_all(slots, axes, split_axis=1, concat_axis=0, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_over_experts(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """Gives every shard along the experts' mesh axes the tokens of all of them: `[n, d]` to `[shards * n, d]`."""
  return jax.lax.all_gather(x, axes, axis=0, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def sum_over_experts(y: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """Adds up what the shards of the experts computed for the gathered tokens: `[shards * n, d]` to `[n, d]`.

  An all-to-all and a local float32 sum in place of a reduce-scatter: for top-1 at most one contribution is not zero,
  and XLA:CPU cannot reduce bfloat16 in a partly manual region.
  """
  shards = jax.lax.axis_size(axes)
  parts = y.reshape(shards, -1, y.shape[-1])
  parts = jax.lax.all_to_all(parts, axes, split_axis=0, concat_axis=0, tiled=True)
  return jnp.sum(parts.astype(jnp.float32), axis=0).astype(y.dtype)


# The two are each other's transpose.
gather_over_experts.defvjp(
  lambda x, axes: (gather_over_experts(x, axes), None), lambda axes, _, gradient: (sum_over_experts(gradient, axes),)
)
sum_over_experts.defvjp(
  lambda y, axes: (sum_over_experts(y, axes), None), lambda axes, _, gradient: (gather_over_experts(gradient, axes),)
)
