"""Where each choice stands in its expert's queue: the decision from which slots follow."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# (int32 `[g, n]` experts in order of priority, `num_experts` standing for "none"; num_experts) to int32 `[g, n]`: how
# many earlier entries of the same row name the same expert (of the entries that name one); and int32 `[g, e]`: how
# often each expert is named.
Positions = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]

# Of the choices whose counts fit bfloat16.
_BLOCK = 128

# So many choices are counted sooner than sorted: few operations for a dozen, as decoding needs them.
_FEW = 64


def positions_cumulative(expert: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
  """The plain form, as the paper's code: a cumulative sum over a one-hot `[g, n, e]`."""
  named = jax.nn.one_hot(expert, num_experts, dtype=jnp.int32)
  before = jnp.cumsum(named, axis=1) - named
  return jnp.sum(before * named, axis=-1), jnp.sum(named, axis=1)


def positions_sorted(expert: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
  """The rank in a stable sort by expert: memory grows with tokens, not with tokens * experts."""
  groups, length = expert.shape
  if length <= _FEW:
    return positions_cumulative(expert, num_experts)
  group = jnp.arange(groups)[:, None]
  counts = jnp.zeros((groups, num_experts + 1), jnp.int32).at[group, expert].add(1)
  starts = jnp.cumsum(counts, axis=-1) - counts  # where the run of each expert begins in the sorted order
  order = jnp.argsort(expert, axis=-1, stable=True)
  ranked = jnp.take_along_axis(expert, order, axis=-1)
  rank = jnp.arange(length, dtype=jnp.int32) - jnp.take_along_axis(starts, ranked, axis=-1)
  found = jnp.zeros_like(expert).at[group, order].set(rank, unique_indices=True)
  return found, counts[:, :-1]


def positions_by_products(expert: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
  """Counts in products with triangular matrices, for TPUs: neither a sort nor a scatter nor scalars that are gathered.

  Exact in bfloat16: within a block of 128 the counts are sums of ones, and the counts of whole blocks, at most 128,
  have no more bits than it has. The sums are in float32.
  """
  groups, length = expert.shape
  padded = jnp.pad(expert, ((0, 0), (0, -length % _BLOCK)), constant_values=num_experts)
  named = padded[..., None] == jnp.arange(num_experts, dtype=expert.dtype)
  ones = named.reshape(groups, -1, _BLOCK, num_experts).astype(jnp.bfloat16)
  totals = jnp.sum(ones, axis=2, dtype=jnp.float32)  # [g, blocks, e]
  within = _sum_of_earlier('ij,gbje->gbie', _BLOCK, ones)
  before = _sum_of_earlier('bc,gce->gbe', totals.shape[1], totals.astype(jnp.bfloat16))
  position = jnp.where(named, (within + before[:, :, None]).reshape(named.shape), 0.0)
  return (
    jnp.sum(position, axis=-1)[:, :length].astype(jnp.int32),
    jnp.sum(totals, axis=1).astype(jnp.int32),
  )


def _sum_of_earlier(axes: str, count: int, values: jax.Array) -> jax.Array:
  earlier = jnp.tril(jnp.ones((count, count), jnp.bfloat16), -1)
  return jnp.einsum(axes, earlier, values, preferred_element_type=jnp.float32)
