"""Movement: tokens into expert slots and back. Pure functions on the tokens of one shard.

Axes: g groups, s tokens of a group, k choices of a token, e experts, c slots of an expert in a group, d width. Two
forms of the same thing: `slots` moves rows by integer index (`kernels.slots`); `einsum` multiplies with one-hot
matrices, as the paper's code does, and is the reference.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from switch_jax import kernels
from switch_jax.model.routing import Routing

# Tokens `[g * s, d]` to the slots of all experts `[e, g * c, d]`.
Send = Callable[[jax.Array], jax.Array]
# The experts' outputs `[e, g * c, d]` to the gated sum of each token's experts `[g * s, d]`.
Receive = Callable[[jax.Array], jax.Array]


def by_index(
  routing: Routing, num_experts: int, capacity: int, decisions: kernels.Decisions = kernels.SORTED
) -> tuple[Send, Receive]:
  """Returns the two ways of the tokens of a shard by integer index. Empty slots hold some token's row."""
  groups, tokens, choices = routing.expert.shape
  index = decisions.slot_index(routing.expert, routing.slot, num_experts, capacity)

  def send(x):
    return kernels.to_slots(x, index, choices).reshape(num_experts, groups * capacity, x.shape[-1])

  def receive(y):
    return kernels.from_slots(y.reshape(-1, y.shape[-1]), routing.gate.reshape(groups * tokens, choices), index)

  return send, receive


def by_one_hot(
  routing: Routing, num_experts: int, capacity: int, decisions: kernels.Decisions = kernels.SORTED
) -> tuple[Send, Receive]:
  """Returns the two ways of the tokens of a shard as products with one-hot tensors. Empty slots are 0."""
  del decisions  # there are none in a product
  groups, tokens, _ = routing.expert.shape
  dispatch, combine = one_hot_dispatch(routing, num_experts, capacity)

  def send(x):
    x = x.reshape(groups, tokens, x.shape[-1])
    return jnp.einsum('gsd,gsec->egcd', x, dispatch.astype(x.dtype)).reshape(num_experts, -1, x.shape[-1])

  def receive(y):
    slots = y.reshape(num_experts, groups, capacity, y.shape[-1]).astype(jnp.float32)
    out = jnp.einsum('egcd,gsec->gsd', slots, combine, precision=jax.lax.Precision.HIGHEST)
    return out.astype(y.dtype).reshape(groups * tokens, -1)

  return send, receive


# What `ragged` does between shards is `destination`'s; within one it is `slots`.
MOVERS = {'slots': by_index, 'einsum': by_one_hot, 'ragged': by_index}


def one_hot_dispatch(routing: Routing, num_experts: int, capacity: int) -> tuple[jax.Array, jax.Array]:
  """Returns the paper's dispatch and combine tensors, float32 `[g, s, e, c]`: who goes where, and with which gate."""
  expert = jax.nn.one_hot(routing.expert, num_experts, dtype=jnp.float32)  # [g, s, k, e]
  slot = jax.nn.one_hot(routing.slot, capacity, dtype=jnp.float32)  # [g, s, k, c]; -1 is all zeros
  dispatch = jnp.einsum('gske,gskc->gsec', expert, slot)
  return dispatch, jnp.einsum('gske,gskc,gsk->gsec', expert, slot, routing.gate)


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
