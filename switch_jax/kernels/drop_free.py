"""Every token through its experts, without slots: the choices of a shard row sorted by expert, a run for each expert.

Giving every expert a slot for every token would cost experts * tokens rows. In sorted order the rows of an expert lie
together, and a product of runs by matrices computes each of them once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from switch_jax.kernels.fused_attention import core_of
from switch_jax.kernels.grouped_product import grouped_product
from switch_jax.kernels.positions import positions_sorted
from switch_jax.kernels.slots import SlotIndex, from_slots, to_slots
from switch_jax.kernels.table import forms
from switch_jax.parallel import Layout

Product = Callable[[jax.Array, str], jax.Array]
# (rows `[n, d]`, product of rows by the kernels of that name of their experts, int32 `[n]` the choice in each row) to
# the experts' outputs `[n, out_dim]`.
Network = Callable[[jax.Array, Product, jax.Array], jax.Array]

SMALLEST_BLOCK, LARGEST_BLOCK = 8, 128
# Of the `grouped` form, whose programs cost something to start.
LARGEST_GROUPED_BLOCK = 512
# So many tokens go through an expert together sooner than sorted, as in a step of decoding: reading the expert's
# matrices takes longer than the products.
FEW_TOKENS = 32


def apply_to_all(
  layout: Layout,
  x: jax.Array,
  expert: jax.Array,
  gate: jax.Array,
  network: Network,
  kernels: dict[str, jax.Array],
  *,
  out_dim: int,
  block: int,
) -> jax.Array:
  """Sends every token through those of its experts that are here.

  Args:
    layout: its devices have the form.
    x: `[n, d]`.
    expert: int32 `[n, k]`, the local expert of each choice; the number of local experts where it is not here. No token
      names one twice.
    gate: float32 `[n, k]`, 0 where the expert is not here.
    network: what an expert computes.
    kernels: matrices of the local experts by name, `[e, fan_in, fan_out]`.
    out_dim: width of the experts' output.
    block: rows to which a run is padded, where the form has blocks.

  Returns:
    `[n, out_dim]`: gated sums over the local experts, zero for tokens that have none of them.
  """
  chosen = forms(layout)['drop_free']
  if chosen == 'blocks' and x.shape[0] <= FEW_TOKENS:
    return _all_tokens(x, expert, gate, network, kernels, out_dim)
  form = {'ragged': _ragged, 'blocks': _by_blocks, 'grouped': _grouped}[chosen]
  y, index = form(layout, x, expert, network, kernels, out_dim, block)
  return from_slots(y, gate, index)


def _ragged(layout, x, expert, network, kernels, out_dim, block):
  """The plain form: a ragged product over the runs as they are."""
  del layout, out_dim, block  # it has no padding
  num_experts = next(iter(kernels.values())).shape[0]
  position, counts = positions_sorted(expert.reshape(1, -1), num_experts)
  counts = counts[0]
  starts = jnp.cumsum(counts) - counts
  here = expert < num_experts
  row = jnp.where(here, starts[jnp.minimum(expert, num_experts - 1)] + position.reshape(expert.shape), expert.size)
  index = _inverted(row.astype(jnp.int32), expert.size)
  rows = to_slots(x, index, expert.shape[-1])
  return network(rows, lambda y, name: jax.lax.ragged_dot(y, kernels[name], counts), index.choice_of), index


def _by_blocks(layout, x, expert, network, kernels, out_dim, block):
  """Runs padded to blocks of one expert each, a block at a time, unused blocks skipped.

  At most choices + local experts * (block - 1) rows are computed.
  """
  del layout
  num_experts = next(iter(kernels.values())).shape[0]
  index, owner = block_index(expert, num_experts, block)
  rows = to_slots(x, index, expert.shape[-1]).reshape(-1, block, x.shape[-1])  # [blocks, block, d]

  def one_block(argument):
    rows, owner, choice = argument
    mine = jnp.minimum(owner, num_experts - 1)

    def compute():
      return network(rows, lambda y, name: y @ kernels[name][mine], choice)

    def skip():  # derived from the rows, so that inside shard_map it varies over the same axes as the other branch
      return jnp.broadcast_to(rows[:, :1] * 0, (block, out_dim))

    return jax.lax.cond(owner < num_experts, compute, skip)

  y = jax.lax.map(one_block, (rows, owner, index.choice_of.reshape(-1, block)))
  return y.reshape(-1, out_dim), index


def _all_tokens(x, expert, gate, network, kernels, out_dim):
  """Of `blocks` for few tokens: each expert that is named computes all of them, and nothing is sorted."""
  tokens, choices = expert.shape

  def one_expert(total, number):
    named = expert == number

    def compute():
      choice = jnp.arange(tokens) * choices + jnp.argmax(named, axis=-1)
      y = network(x, lambda rows, name: rows @ kernels[name][number], choice).astype(jnp.float32)
      share = jnp.sum(jnp.where(named, gate, 0.0), axis=-1, keepdims=True)
      return total + jnp.where(jnp.any(named, axis=-1, keepdims=True), share * y, 0.0)

    return jax.lax.cond(jnp.any(named), compute, lambda: total), ()

  num_experts = next(iter(kernels.values())).shape[0]
  # Derived from the tokens, so that inside shard_map it varies over the same axes as what is added.
  nothing = jnp.broadcast_to((x[:, :1] * 0).astype(jnp.float32), (tokens, out_dim))
  return jax.lax.scan(one_expert, nothing, jnp.arange(num_experts))[0].astype(x.dtype)


def _grouped(layout, x, expert, network, kernels, out_dim, block):
  """The same blocks, all of them in one product."""
  del out_dim
  index, owner = block_index(expert, next(iter(kernels.values())).shape[0], block)
  rows = to_slots(x, index, expert.shape[-1])
  product = lambda y, name: grouped_product(core_of(layout), y, kernels[name], owner)  # noqa: E731
  return network(rows, product, index.choice_of), index


def block_size(num_choices: int, num_experts: int, form: str = 'blocks', wanted: int | None = None) -> int:
  """Returns the rows of a block: what was asked for, or what suits the mean number of choices per expert.

  Args:
    num_choices, num_experts: on average.
    form: of the operation `drop_free`.
    wanted: `MoeConfig.drop_free_block_size`, which wins, for `grouped` where it is a multiple of 8.

  Returns:
    The power of two from 8 to 128 at or below the mean; for `grouped` up to 512 where that is an eighth of it.
  """
  if wanted and (form != 'grouped' or wanted % SMALLEST_BLOCK == 0):
    return wanted
  mean = max(num_choices // num_experts, 1)
  block = min(max(1 << (mean.bit_length() - 1), SMALLEST_BLOCK), LARGEST_BLOCK)
  if form != 'grouped':
    return block
  return max(block, min(1 << (mean.bit_length() - 1) >> 3, LARGEST_GROUPED_BLOCK))


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
  position, counts = positions_sorted(expert.reshape(1, -1), num_experts)
  position, counts = position.reshape(expert.shape), counts[0]
  ends = jnp.cumsum((counts + block - 1) // block)  # in blocks
  starts = jnp.concatenate([jnp.zeros((1,), ends.dtype), ends]) * block  # [experts + 1], in rows
  row = jnp.where(expert < num_experts, starts[expert] + position, total).astype(jnp.int32)
  owner = jnp.sum(jnp.arange(total // block)[:, None] >= ends, axis=-1, dtype=jnp.int32)
  return _inverted(row, total), owner


def _inverted(row: jax.Array, total: int) -> SlotIndex:
  """Returns the row of each choice (`total` for none) with the choice in each of `total` rows."""
  every_choice = jnp.arange(row.size, dtype=jnp.int32)
  empty = jnp.full((total,), row.size, jnp.int32)
  return SlotIndex(row, empty.at[row.reshape(-1)].set(every_choice, mode='drop'))
