"""Routing without dropping: tokens sorted by expert, runs padded to small blocks, one product per block.

Giving every expert a slot for every token would cost experts * tokens rows. Here the choices of a shard row are sorted
by expert and each local expert's run is padded to a multiple of `block` rows, so at most
choices + local experts * (block - 1) rows are computed, and blocks that stay empty are skipped.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from switch_jax.model.dispatch import SlotIndex, from_slots, to_slots
from switch_jax.model.routing import Routing, positions_within_expert

Expert = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

SMALLEST_BLOCK, LARGEST_BLOCK = 8, 128


def block_size(num_choices: int, num_experts: int) -> int:
  """Returns the power of two from 8 to 128 at or below the mean number of choices per expert."""
  mean = max(num_choices // num_experts, 1)
  return min(max(1 << (mean.bit_length() - 1), SMALLEST_BLOCK), LARGEST_BLOCK)


def num_rows(num_choices: int, num_experts: int, block: int) -> int:
  """Returns the rows that hold `num_choices` choices whatever their experts are: a multiple of `block`.

  Every expert that is named wastes at most block - 1 rows, and no more experts are named than there are choices.
  """
  wasted = min(num_experts, num_choices) * (block - 1)
  return (num_choices + wasted) // block * block


def block_index(expert: jax.Array, num_experts: int, block: int) -> tuple[SlotIndex, jax.Array]:
  """Assigns rows to choices so that every block of rows belongs to one expert.

  Args:
    expert: int32 `[n, k]`, the local expert of each choice; `num_experts` for those that are not computed here.
    num_experts: local experts.
    block: rows of a block.

  Returns:
    The row of each choice and its inverse, and int32 `[blocks]`: the expert of each block, `num_experts` if unused.
  """
  total = num_rows(expert.size, num_experts, block)
  position, counts = positions_within_expert(expert.reshape(1, -1), num_experts)
  position, counts = position.reshape(expert.shape), counts[0]
  ends = jnp.cumsum((counts + block - 1) // block)  # in blocks
  starts = jnp.concatenate([jnp.zeros((1,), ends.dtype), ends]) * block  # [experts + 1], in rows
  row = jnp.where(expert < num_experts, starts[expert] + position, total).astype(jnp.int32)
  every_choice = jnp.arange(expert.size, dtype=jnp.int32)
  empty = jnp.full((total,), expert.size, jnp.int32)
  choice_of = empty.at[row.reshape(-1)].set(every_choice, mode='drop')
  owner = jnp.sum(jnp.arange(total // block)[:, None] >= ends, axis=-1, dtype=jnp.int32)
  return SlotIndex(row, choice_of), owner


def apply_experts(
  x: jax.Array,
  routing: Routing,
  expert: Expert,
  *,
  first_expert: jax.Array | int,
  num_experts: int,
  out_dim: int,
  block: int,
) -> jax.Array:
  """Sends every token through those of its experts that are local, without dropping any.

  Args:
    x: `[n, d]`.
    routing: `[1, n, k]`.
    expert: maps (local expert, rows `[block, d]`, the choice in each row `[block]`) to `[block, out_dim]`.
    first_expert: global index of the first local expert.
    num_experts: local experts.
    out_dim: width of the experts' output.
    block: rows of a block.

  Returns:
    `[n, out_dim]`: gated sums over the local experts, zero for tokens that have none of them.
  """
  choices = routing.expert.shape[-1]
  local = routing.expert[0] - first_expert
  is_here = (local >= 0) & (local < num_experts) & (routing.slot[0] >= 0)
  index, owner = block_index(jnp.where(is_here, local, num_experts), num_experts, block)
  rows = to_slots(x, index, choices).reshape(-1, block, x.shape[-1])  # [blocks, block, d]

  def one_block(argument):
    rows, owner, choice = argument
    compute = lambda: expert(jnp.minimum(owner, num_experts - 1), rows, choice)  # noqa: E731
    # Derived from the rows, so that inside shard_map it varies over the same axes as the other branch.
    skip = lambda: jnp.broadcast_to(rows[:, :1] * 0, (block, out_dim))  # noqa: E731
    return jax.lax.cond(owner < num_experts, compute, skip)

  y = jax.lax.map(one_block, (rows, owner, index.choice_of.reshape(-1, block)))
  return from_slots(y.reshape(-1, out_dim), jnp.where(is_here, routing.gate[0], 0.0), index)
