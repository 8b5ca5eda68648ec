"""The gradient of a batch as the sum over microbatches, so that only one of them is in memory at a time.

The loss divides by three numbers of the whole batch: its target tokens, the groups that hold a token, and the routed
tokens. All follow from the masks, so they are known before the first microbatch, and the sums of the microbatches
divided by them add up to the loss and the gradient of the full batch.

A microbatch takes every n-th run of `sequences_per_group` rows (of one row, where that is None). So a routing group
stays whole, every device finds the rows of every microbatch among its own, and which rows are in a microbatch, hence
their noise, does not depend on the mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from switch_jax.config import ModelConfig
from switch_jax.data import Batch
from switch_jax.model.losses import RouterCounts
from switch_jax.parallel import Layout


def split(batch: Batch, count: int, model: ModelConfig, layout: Layout) -> Batch:
  """Returns the arrays `[rows, length]` of a batch as `[count, rows / count, length]`; no row leaves its device."""
  together = (model.moe and model.moe.sequences_per_group) or 1

  def one(rows: jax.Array) -> jax.Array:
    rows = rows.reshape(-1, count, together, *rows.shape[1:])
    rows = rows.swapaxes(0, 1).reshape(count, -1, *rows.shape[3:])
    return layout.constrain(rows, None, 'batch', None)

  return jax.tree.map(one, batch)


def router_counts(batches: Batch, model: ModelConfig, layout: Layout) -> dict[str, RouterCounts]:
  """Returns what the router losses of each stack's layers divide by, from the masks of all microbatches.

  Args:
    batches: what `split` returned, with segment ids.
    model: gives the rows of a group and whether padding counts.
    layout: gives the number of groups, where a group is what a shard holds.
  """
  counts = {}
  for stack in model.stacks:
    real = batches[f'{stack}_segment_ids'] > 0
    if model.moe.padding_takes_slots:
      real = jnp.ones_like(real)
    rows = model.moe.sequences_per_group or real.shape[1] // layout.num_token_shards
    tokens = jnp.sum(real.reshape(real.shape[0], -1, rows * real.shape[2]), axis=-1, dtype=jnp.float32)
    counts[stack] = RouterCounts.of_groups(tokens)
  return counts


def accumulate(function: Callable[[Batch, jax.Array], tuple[Any, Any]], batches: Batch, zeros: Any) -> tuple[Any, Any]:
  """Adds up the gradients of all microbatches.

  Args:
    function: given a microbatch and its number, returns a gradient and whatever else.
    batches: what `split` returned.
    zeros: where the sum begins; it also says how the sum lies on the mesh.

  Returns:
    The sum, and the rest stacked over microbatches.
  """
  count = jax.tree.leaves(batches)[0].shape[0]

  def turn(total, item):
    gradient, rest = function(*item)
    return jax.tree.map(jnp.add, total, gradient), rest

  return jax.lax.scan(turn, zeros, (batches, jnp.arange(count)))
