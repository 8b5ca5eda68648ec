"""Where each choice stands in its expert's queue: the decision from which slots follow."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from switch_jax.kernels.table import forms
from switch_jax.parallel import Layout

# (int32 `[g, n]` experts in order of priority, `num_experts` standing for "none"; num_experts) to int32 `[g, n]`: how
# many earlier entries of the same row name the same expert (of the entries that name one); and int32 `[g, e]`: how
# often each expert is named.
Positions = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]


def positions(layout: Layout) -> Positions:
  """Returns the form for a layout's devices."""
  return {'cumulative': positions_cumulative, 'sorted': positions_sorted}[forms(layout)['positions']]


def positions_cumulative(expert: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
  """The plain form, as the paper's code: a cumulative sum over a one-hot `[g, n, e]`."""
  named = jax.nn.one_hot(expert, num_experts, dtype=jnp.int32)
  before = jnp.cumsum(named, axis=1) - named
  return jnp.sum(before * named, axis=-1), jnp.sum(named, axis=1)


def positions_sorted(expert: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
  """The rank in a stable sort by expert: memory grows with tokens, not with tokens * experts."""
  groups, length = expert.shape
  group = jnp.arange(groups)[:, None]
  counts = jnp.zeros((groups, num_experts + 1), jnp.int32).at[group, expert].add(1)
  starts = jnp.cumsum(counts, axis=-1) - counts  # where the run of each expert begins in the sorted order
  order = jnp.argsort(expert, axis=-1, stable=True)
  ranked = jnp.take_along_axis(expert, order, axis=-1)
  rank = jnp.arange(length, dtype=jnp.int32) - jnp.take_along_axis(starts, ranked, axis=-1)
  found = jnp.zeros_like(expert).at[group, order].set(rank, unique_indices=True)
  return found, counts[:, :-1]
