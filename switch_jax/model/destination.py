"""Capacity at the destination: the rows of a shard's experts are one queue of all shards that exchange tokens.

Every shard knows how many tokens it has for each expert. Exchanges of such counts tell it which rows they get where the
expert lies: shard 0's tokens come first, in their order, then shard 1's; where a token has several choices, the first
choices of all shards and then the second ones. Whoever finds no room is dropped and never sent. Either every expert has
slots, and the numbers are those of `slots` on one device that has all these tokens as one group; or the experts of a
shard share a buffer, in which the run of each is as long as it needs to be.

Two ways of moving the tokens, chosen by `kernels.forms`: ordinary collectives, which give every shard all tokens; and
`jax.lax.ragged_all_to_all`, in which only those move that have a row. Axes: n tokens of a shard, k choices of a token,
e experts, l experts of a shard, r rows of a shard's experts, d width.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

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
    offset: `[e, k]`, where the run of each expert and choice begins among this shard's choices, sorted by these two.
    place: `[e, k]`, the row at which it begins where the expert lies.
    taken: `[e, k]`, how many tokens of the run, from its beginning, get a row there.
    their_offset, their_place, their_taken: `[shards, l, k]`, the same of each shard's runs for the experts that are
      here.
    num_rows: r.
    axes: the mesh axes of the shards.
  """

  offset: jax.Array
  place: jax.Array
  taken: jax.Array
  their_offset: jax.Array
  their_place: jax.Array
  their_taken: jax.Array
  num_rows: int = dataclasses.field(metadata=dict(static=True))
  axes: tuple[str, ...] = dataclasses.field(metadata=dict(static=True))

  @property
  def expert_of_row(self) -> jax.Array:
    """Int32 `[r]`: of a buffer, which of the experts here a row belongs to; l for the rows behind the last run."""
    ends = jnp.cumsum(jnp.sum(self.their_taken, axis=(0, 2)))
    return jnp.sum(jnp.arange(self.num_rows)[:, None] >= ends, axis=-1, dtype=jnp.int32)


# Int32 `[k * shards, l]`, the lengths of the runs that arrive in their order, to the rows where they begin, how much of
# each is taken, and how many rows there are.
Rule = Callable[[jax.Array], tuple[jax.Array, jax.Array, int]]


def slots(capacity: int) -> Rule:
  """Returns the rule by which each expert has `capacity` slots."""

  def rule(counts):
    start, num_experts = jnp.cumsum(counts, axis=0) - counts, counts.shape[1]
    first = jnp.arange(num_experts, dtype=jnp.int32) * capacity
    return first + jnp.minimum(start, capacity), jnp.clip(capacity - start, 0, counts), num_experts * capacity

  return rule


def buffer(num_rows: int) -> Rule:
  """Returns the rule by which the experts of a shard have `num_rows` rows together, one expert after the other."""

  def rule(counts):
    by_expert = counts.T.reshape(-1)
    start = (jnp.cumsum(by_expert) - by_expert).reshape(counts.T.shape).T
    return jnp.minimum(start, num_rows), jnp.clip(num_rows - start, 0, counts), num_rows

  return rule


def join_queue(counts: jax.Array, rule: Rule, axes: tuple[str, ...]) -> Queue:
  """Returns where this shard's tokens stand in the queues of all experts.

  Args:
    counts: int32 `[e, k]`, tokens that this shard has for each expert by choice.
    rule: how many are taken where they arrive.
    axes: the mesh axes of the shards.
  """

  shards, choices = jax.lax.axis_size(axes), counts.shape[1]

  def exchange(*values):
    pairs = jnp.stack(values, axis=-1).reshape(shards, -1, choices, len(values))
    return jnp.unstack(jax.lax.all_to_all(pairs, axes, split_axis=0, concat_axis=0, tiled=True), axis=-1)

  offset = (jnp.cumsum(counts.reshape(-1)) - counts.reshape(-1)).reshape(counts.shape)
  their_counts, their_offset = exchange(counts, offset)
  in_order = their_counts.transpose(2, 0, 1)  # [k, shards, l]
  *rows, num_rows = rule(in_order.reshape(choices * shards, -1))
  their_place, their_taken = (value.reshape(in_order.shape).transpose(1, 2, 0) for value in rows)
  place, taken = (value.reshape(counts.shape) for value in exchange(their_place, their_taken))
  queue = Queue(offset, place, taken, their_offset, their_place, their_taken, num_rows, axes)
  return checkpoint_name(queue, 'to_experts')  # so that remat does not exchange it again


def share_rows(
  routing: Routing,
  statistics: RoutingStatistics,
  rule: Rule,
  axes: tuple[str, ...],
  decisions: kernels.Decisions = kernels.SORTED,
) -> tuple[Routing, RoutingStatistics, Queue]:
  """Turns positions in a shard's own queues into rows of the experts' shards.

  Args:
    routing: of the one group `[1, n, k]` of this shard, without a capacity.
    statistics: of the same.
    rule: how many are taken where they arrive.
    axes: the mesh axes of the shards.
    decisions: see `kernels.decisions`.

  Returns:
    The routing, whose slots are rows of the expert's shard, -1 where there was no room; the statistics with `dropped`
    corrected; and the queue.
  """
  if routing.expert.shape[2] == 1:
    counts, place_in_run = statistics.expert_tokens.T.astype(jnp.int32), routing.slot
  else:
    num_experts = statistics.expert_tokens.shape[1]
    wanted = jnp.where(routing.slot >= 0, routing.expert, num_experts)[0].T
    place_in_run, counts = (value.T for value in decisions.positions(wanted, num_experts))
  queue = join_queue(counts, rule, axes)
  has_row = (routing.slot >= 0) & (place_in_run < _of_expert(queue.taken, routing, decisions))
  row = place_in_run + _of_expert(queue.place, routing, decisions)
  routing = Routing(routing.expert, jnp.where(has_row, row, -1), jnp.where(has_row, routing.gate, 0.0))
  dropped = statistics.tokens - jnp.sum(has_row, axis=(1, 2)) / has_row.shape[2]
  return routing, dataclasses.replace(statistics, dropped=dropped), queue


def by_gathering(routing: Routing, queue: Queue, decisions: kernels.Decisions = kernels.SORTED) -> tuple[Send, Receive]:
  """The plain form: every shard gets all tokens, keeps those of its experts, and the results are summed."""
  choices = routing.expert.shape[2]
  everyone: Routing = jax.tree.map(lambda x: jax.lax.all_gather(x, queue.axes, axis=1, tiled=True), routing)
  is_here = everyone.expert // queue.their_taken.shape[1] == jax.lax.axis_index(queue.axes)
  index = _index(everyone.slot, is_here & (everyone.slot >= 0), queue.num_rows, decisions)

  def send(x):
    return kernels.to_slots(gather_over_experts(x, queue.axes), index, choices)

  def receive(y):
    y = kernels.from_slots(checkpoint_name(y, 'from_experts'), everyone.gate.reshape(-1, choices), index)
    return sum_over_experts(y, queue.axes)

  return send, receive


def by_ragged_exchange(
  routing: Routing, queue: Queue, decisions: kernels.Decisions = kernels.SORTED
) -> tuple[Send, Receive]:
  """The form for TPUs: choices are sorted by expert, and of each run the part that is taken is sent."""
  _, tokens, choices = routing.expert.shape
  sorted_row = routing.slot + _of_expert(queue.offset - queue.place, routing, decisions)
  index = _index(sorted_row, routing.slot >= 0, tokens * choices, decisions)

  def send(x):
    return _to_experts(kernels.to_slots(x, index, choices), queue, tokens * choices)

  def receive(y):
    rows = checkpoint_name(_from_experts(y, queue, tokens * choices), 'from_experts')
    return kernels.from_slots(rows, routing.gate.reshape(tokens, choices), index)

  return send, receive


Mover = Callable[[Routing, Queue, kernels.Decisions], tuple[Send, Receive]]
# By the forms of the operation `exchange`: the two ways between tokens `[n, d]` and rows `[r, d]`.
MOVERS: dict[str, Mover] = {'gathered': by_gathering, 'ragged': by_ragged_exchange}


def _of_expert(values: jax.Array, routing: Routing, decisions: kernels.Decisions) -> jax.Array:
  """Returns the value `[1, n, k]` of each token's experts, of values `[e, k]`."""
  by_choice = routing.expert.transpose(2, 1, 0)  # [k, n, 1]
  every_expert = jnp.broadcast_to(values.T[:, None], (*by_choice.shape[:2], len(values)))
  return decisions.pick(every_expert, by_choice).transpose(2, 1, 0)


def _index(row: jax.Array, has_row: jax.Array, num_rows: int, decisions: kernels.Decisions) -> kernels.SlotIndex:
  """Returns which of `num_rows` rows each choice has, `[1, n, k]`, where it has one; and the inverse."""
  blocks = -(-num_rows // _BLOCK)
  index = decisions.slot_index(row // _BLOCK, jnp.where(has_row, row % _BLOCK, -1), blocks, _BLOCK)
  return kernels.SlotIndex(index.of_choice, index.choice_of[:num_rows])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _to_experts(tokens: jax.Array, queue: Queue, num_tokens: int) -> jax.Array:
  """Sends the sorted tokens `[num_tokens, d]` of all choices to their rows `[r, d]`; empty rows are 0."""
  runs = (queue.offset, queue.taken, queue.place, queue.their_taken)
  return _exchange(tokens, queue.num_rows, runs, queue.axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _from_experts(rows: jax.Array, queue: Queue, num_tokens: int) -> jax.Array:
  """Brings rows `[r, d]` back to the sorted tokens `[num_tokens, d]`; those that had none are 0."""
  runs = (queue.their_place, queue.their_taken, queue.their_offset, queue.taken)
  return _exchange(rows, num_tokens, runs, queue.axes)


# The two are each other's transpose. JAX's own would exchange the offsets again, which both sides know.
_to_experts.defvjp(
  lambda tokens, queue, num_tokens: (_to_experts(tokens, queue, num_tokens), queue),
  lambda num_tokens, queue, gradient: (_from_experts(gradient, queue, num_tokens), None),
)
_from_experts.defvjp(
  lambda rows, queue, num_tokens: (_from_experts(rows, queue, num_tokens), queue),
  lambda num_tokens, queue, gradient: (_to_experts(gradient, queue, num_tokens), None),
)


def _exchange(x: jax.Array, num_rows: int, runs: Sequence[jax.Array], axes: tuple[str, ...]) -> jax.Array:
  """Returns `jax.lax.ragged_all_to_all` of rows into `num_rows` zeros; `runs` are its four offsets and sizes."""
  zeros = jnp.zeros_like(x, shape=(num_rows, x.shape[1]))  # varies over the mesh axes of `x`, as the result has to
  return jax.lax.ragged_all_to_all(x, zeros, *(run.reshape(-1) for run in runs), axis_name=axes)
