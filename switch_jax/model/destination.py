"""Capacity at the destination: the slots of an expert are one queue of all shards that exchange tokens.

Every shard knows how many tokens it has for each expert. Two exchanges of such counts tell it where the queue stands
when its first token joins: shard 0's tokens come first, in their order, then shard 1's. Whoever finds the queue full is
dropped and never sent, so that the numbers are those of `slots` on one device that has all these tokens as one group.

Two ways of moving the tokens, chosen by `kernels.forms`: ordinary collectives, which give every shard all tokens; and
`jax.lax.ragged_all_to_all`, in which only those move that have a slot. Axes: n tokens of a shard, e experts, l experts
of a shard, c slots of an expert, d width.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from switch_jax import kernels
from switch_jax.model.dispatch import Receive, Send, gather_over_experts, sum_over_experts
from switch_jax.model.routing import Routing, RoutingStatistics

# Rows are numbered by [block, place], so that inverting the numbers takes products of small one-hots.
_BLOCK = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queue:
  """What a shard sends and what it is sent, as runs of rows, all int32.

  Attributes:
    offset: `[e]`, where the run of each expert begins among this shard's tokens, sorted by expert.
    start: `[e]`, how many of other shards' tokens stand before it in the expert's queue.
    taken: `[e]`, how many tokens of the run, from its beginning, get a slot.
    their_offset, their_start, their_taken: `[shards, l]`, the same of each shard's runs for the experts that are here.
    capacity: c.
    axes: the mesh axes of the shards.
  """

  offset: jax.Array
  start: jax.Array
  taken: jax.Array
  their_offset: jax.Array
  their_start: jax.Array
  their_taken: jax.Array
  capacity: int = dataclasses.field(metadata=dict(static=True))
  axes: tuple[str, ...] = dataclasses.field(metadata=dict(static=True))


def join_queue(counts: jax.Array, capacity: int, axes: tuple[str, ...]) -> Queue:
  """Returns where this shard's tokens stand in the queues of all experts.

  Args:
    counts: int32 `[e]`, tokens that this shard has for each expert.
    capacity: slots of an expert, for all shards together.
    axes: the mesh axes of the shards.
  """

  def exchange(values):
    return jax.lax.all_to_all(values, axes, split_axis=0, concat_axis=0, tiled=True)

  def taken(start, count):
    return jnp.clip(capacity - start, 0, count)

  offset = jnp.cumsum(counts) - counts
  arrived = exchange(jnp.stack([counts, offset], axis=-1).reshape(jax.lax.axis_size(axes), -1, 2))
  their_counts, their_offset = arrived[..., 0], arrived[..., 1]
  their_start = jnp.cumsum(their_counts, axis=0) - their_counts
  start = exchange(their_start).reshape(-1)
  ours = (offset, start, taken(start, counts))
  theirs = (their_offset, their_start, taken(their_start, their_counts))
  # Named, so that remat does not exchange them again.
  return checkpoint_name(Queue(*ours, *theirs, capacity, axes), 'to_experts')


def share_slots(
  routing: Routing,
  statistics: RoutingStatistics,
  capacity: int,
  axes: tuple[str, ...],
  decisions: kernels.Decisions = kernels.SORTED,
) -> tuple[Routing, RoutingStatistics, Queue]:
  """Turns positions in a shard's own queues into slots of the queues that the shards share.

  Args:
    routing: of the one group `[1, n, 1]` of this shard, without a capacity.
    statistics: of the same; `dropped` is corrected.
    capacity: slots of an expert, for all shards together.
    axes: the mesh axes of the shards.
    decisions: see `kernels.decisions`.
  """
  queue = join_queue(statistics.expert_tokens[0].astype(jnp.int32), capacity, axes)
  slot = routing.slot + _of_expert(queue.start, routing, decisions)
  has_slot = (routing.slot >= 0) & (slot < capacity)
  routing = Routing(routing.expert, jnp.where(has_slot, slot, -1), jnp.where(has_slot, routing.gate, 0.0))
  dropped = statistics.tokens - jnp.sum(has_slot, axis=(1, 2))
  return routing, dataclasses.replace(statistics, dropped=dropped), queue


def by_gathering(routing: Routing, queue: Queue, decisions: kernels.Decisions = kernels.SORTED) -> tuple[Send, Receive]:
  """The plain form: every shard gets all tokens, keeps those of its experts, and the results are summed."""
  local_experts = queue.their_taken.shape[1]
  everyone: Routing = jax.tree.map(lambda x: jax.lax.all_gather(x, queue.axes, axis=1, tiled=True), routing)
  local = everyone.expert - jax.lax.axis_index(queue.axes) * local_experts
  slot = jnp.where((local >= 0) & (local < local_experts), everyone.slot, -1)
  index = decisions.slot_index(local, slot, local_experts, queue.capacity)

  def send(x):
    slots = kernels.to_slots(gather_over_experts(x, queue.axes), index, 1)
    return slots.reshape(local_experts, queue.capacity, x.shape[-1])

  def receive(y):
    y = checkpoint_name(y.reshape(-1, y.shape[-1]), 'from_experts')
    return sum_over_experts(kernels.from_slots(y, everyone.gate.reshape(-1, 1), index), queue.axes)

  return send, receive


def by_ragged_exchange(
  routing: Routing, queue: Queue, decisions: kernels.Decisions = kernels.SORTED
) -> tuple[Send, Receive]:
  """The form for TPUs: tokens are sorted by expert, and of each run the part that has slots is sent to them."""
  local_experts = queue.their_taken.shape[1]
  tokens = routing.expert.shape[1]
  has_slot = routing.slot >= 0
  # Where a run begins, and the place in it: its slots begin with `start`. A token without a slot needs no row.
  row = _of_expert(queue.offset - queue.start, routing, decisions) + routing.slot
  blocks = -(-tokens // _BLOCK)
  index = decisions.slot_index(row // _BLOCK, jnp.where(has_slot, row % _BLOCK, -1), blocks, _BLOCK)

  def send(x):
    slots = _to_experts(kernels.to_slots(x, index, 1), queue, blocks * _BLOCK)
    return slots.reshape(local_experts, queue.capacity, x.shape[-1])

  def receive(y):
    rows = _from_experts(y.reshape(-1, y.shape[-1]), queue, blocks * _BLOCK)
    return kernels.from_slots(checkpoint_name(rows, 'from_experts'), routing.gate.reshape(tokens, 1), index)

  return send, receive


Mover = Callable[[Routing, Queue, kernels.Decisions], tuple[Send, Receive]]
# By the forms of the operation `exchange`.
MOVERS: dict[str, Mover] = {'gathered': by_gathering, 'ragged': by_ragged_exchange}


def _of_expert(values: jax.Array, routing: Routing, decisions: kernels.Decisions) -> jax.Array:
  """Returns the value `[1, n, 1]` of each token's expert, of values `[e]`."""
  return decisions.pick(jnp.broadcast_to(values, (*routing.expert.shape[:2], values.size)), routing.expert)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _to_experts(rows: jax.Array, queue: Queue, num_rows: int) -> jax.Array:
  """Sends sorted rows `[num_rows, d]` to the slots of their experts `[l * c, d]`; empty slots are 0."""
  shards, local_experts = queue.their_taken.shape
  first_slot = jnp.tile(jnp.arange(local_experts, dtype=jnp.int32) * queue.capacity, shards)
  # Where nothing is taken the start may lie beyond the queue.
  to = first_slot + jnp.minimum(queue.start, queue.capacity)
  return _exchange(rows, local_experts * queue.capacity, queue.offset, queue.taken, to, queue.their_taken, queue.axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _from_experts(slots: jax.Array, queue: Queue, num_rows: int) -> jax.Array:
  """Brings slots `[l * c, d]` back to the rows `[num_rows, d]` that they came from; other rows are 0."""
  first_slot = jnp.arange(queue.their_taken.shape[1], dtype=jnp.int32) * queue.capacity
  at = first_slot + jnp.minimum(queue.their_start, queue.capacity)
  return _exchange(slots, num_rows, at, queue.their_taken, queue.their_offset, queue.taken, queue.axes)


# The two are each other's transpose. JAX's own would exchange the offsets again, which both sides know.
_to_experts.defvjp(
  lambda rows, queue, num_rows: (_to_experts(rows, queue, num_rows), queue),
  lambda num_rows, queue, gradient: (_from_experts(gradient, queue, num_rows), None),
)
_from_experts.defvjp(
  lambda slots, queue, num_rows: (_from_experts(slots, queue, num_rows), queue),
  lambda num_rows, queue, gradient: (_to_experts(gradient, queue, num_rows), None),
)


def _exchange(
  x: jax.Array,
  num_rows: int,
  offsets: jax.Array,
  sizes: jax.Array,
  output_offsets: jax.Array,
  received_sizes: jax.Array,
  axes: tuple[str, ...],
) -> jax.Array:
  """Returns `jax.lax.ragged_all_to_all` of rows `[n, d]` into `num_rows` zeros."""
  zeros = jnp.zeros_like(x, shape=(num_rows, x.shape[1]))  # varies over the mesh axes of `x`, as the result has to
  runs = (run.reshape(-1) for run in (offsets, sizes, output_offsets, received_sizes))
  return jax.lax.ragged_all_to_all(x, zeros, *runs, axis_name=axes)
