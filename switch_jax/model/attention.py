"""T5 attention: relative-position bias, masks from segment ids, and two ways to compute the same product.

T5 does not divide the scores by sqrt(head_dim) at run time: the factor is folded in the query's initial values
(Raffel et al. 2020), so do not rescale here.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from switch_jax.config import ModelConfig
from switch_jax.model import initializers
from switch_jax.model.layers import Dense, Kernel
from switch_jax.parallel import Layout, lift

# Large enough that adding a score leaves it unchanged in float32: a query without keys averages all values, as T5X.
MASKED = -1e10


def relative_position_bucket(
  offset: jax.Array, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> jax.Array:
  """Returns the int32 bucket of every offset key - query (Raffel et al. 2020, section 2.1).

  Half of the buckets are for exact small offsets, the others grow logarithmically up to `max_distance`; with
  `bidirectional` half of all are for keys after the query.
  """
  bucket = jnp.zeros_like(offset)
  if bidirectional:
    num_buckets //= 2
    bucket = jnp.where(offset > 0, num_buckets, 0)
    distance = jnp.abs(offset)
  else:
    distance = jnp.maximum(-offset, 0)
  exact = num_buckets // 2
  # The epsilon only keeps the logarithm of the unused branch finite.
  ratio = jnp.log(distance.astype(jnp.float32) / exact + jnp.finfo(jnp.float32).eps) / math.log(max_distance / exact)
  far = jnp.minimum(exact + (ratio * (num_buckets - exact)).astype(jnp.int32), num_buckets - 1)
  return bucket + jnp.where(distance < exact, distance, far)


def by_offset(values: jax.Array, query_length: int, key_length: int) -> jax.Array:
  """Lays values that depend on key - query only out as a matrix.

  Args:
    values: `[heads, query_length + key_length - 1]`, for the offsets 1 - query_length to key_length - 1.
    query_length, key_length: sides of the matrix.

  Returns:
    `[heads, query_length, key_length]`. Every row is the one above shifted by one, so the matrix is a reshaped
    repetition of the values: neither a lookup of each entry nor, backwards, a scatter.
  """
  heads, count = values.shape
  rows = jnp.broadcast_to(jnp.pad(values, ((0, 0), (0, 1)))[:, None], (heads, query_length, count + 1))
  shifted = rows.reshape(heads, -1)[:, query_length - 1 : query_length - 1 + query_length * count]
  return shifted.reshape(heads, query_length, count)[:, :, :key_length]


class RelativePositionBias(nn.Module):
  """The bias that all layers of a stack share, one number for each head and bucket."""

  config: ModelConfig
  bidirectional: bool

  @nn.compact
  def __call__(self, query_length: int, key_length: int, first_query: jax.Array | int = 0) -> jax.Array:
    """Returns the float32 bias `[heads, query_length, key_length]` of queries that begin at the key `first_query`."""
    config = self.config
    init = nn.with_logical_partitioning(initializers.relative_position_bias(config), ('heads', 'relpos_buckets'))
    shape = (config.num_heads, config.relpos_num_buckets)
    table = self.param('rel_embedding', init, shape, jnp.float32)
    buckets = relative_position_bucket(
      jnp.arange(1 - query_length, key_length) - first_query,
      bidirectional=self.bidirectional,
      num_buckets=config.relpos_num_buckets,
      max_distance=config.relpos_max_distance,
    )
    one_hot = jax.nn.one_hot(buckets, config.relpos_num_buckets, dtype=jnp.float32)
    values = jnp.einsum('hn,on->ho', table, one_hot, precision=jax.lax.Precision.HIGHEST)
    return by_offset(values, query_length, key_length)


def _scores_bias(query_segments, key_segments, bias, causal):
  """Returns the float32 additive bias `[..., heads or 1, query, key]` of one row or many, masks included."""
  allowed = (query_segments[..., :, None] == key_segments[..., None, :]) & (key_segments[..., None, :] > 0)
  if causal:
    query_length, key_length = allowed.shape[-2:]
    allowed &= jnp.tril(jnp.ones((query_length, key_length), bool))
  mask = jnp.where(allowed, 0.0, MASKED)[..., None, :, :]
  return mask if bias is None else mask + bias


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  query_segments: jax.Array,
  key_segments: jax.Array,
  bias: jax.Array | None = None,
  keep: jax.Array | None = None,
  *,
  causal: bool = False,
) -> jax.Array:
  """Attention over keys of the same segment; the softmax is in float32.

  Args:
    query, key, value: `[batch, length, heads, kv]`.
    query_segments, key_segments: int32 `[batch, length]`; a query sees the keys of its own segment, none of segment 0.
    bias: float32 `[heads, query length, key length]`.
    keep: dropout factors of the weights `[batch, heads, key length]` (0 or 1 / (1 - rate)), equal for all queries.
    causal: hide later keys.

  Returns:
    `[batch, query length, heads, kv]` in the dtype of `query`.
  """
  scores = jnp.einsum('bqhk,bshk->bhqs', query, key, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(scores + _scores_bias(query_segments, key_segments, bias, causal), axis=-1)
  if keep is not None:
    weights = weights * keep[:, :, None, :]
  return jnp.einsum('bhqs,bshk->bqhk', weights.astype(query.dtype), value)


def attend_by_row(
  layout: Layout,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  query_segments: jax.Array,
  key_segments: jax.Array,
  bias: jax.Array | None = None,
  keep: jax.Array | None = None,
  *,
  causal: bool = False,
) -> jax.Array:
  """The same as `attend`, one row of the batch at a time, for CPUs.

  The scores of one row fit the cache, and computing them again in the backward pass costs less than storing them: a
  third of the time of `attend` on XLA:CPU. On TPUs the plain form is better. The rows of a shard are mapped inside
  the shard, since a map over a split axis would gather it.
  """
  has_bias, has_keep = bias is not None, keep is not None

  @jax.checkpoint
  def one_row(row, bias):
    q, k, v, query_segments, key_segments, keep = row
    q, k, v = (x.swapaxes(0, 1) for x in (q, k, v))  # [heads, length, kv]
    scores = jnp.einsum('hqk,hsk->hqs', q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores + _scores_bias(query_segments, key_segments, bias, causal), axis=-1)
    if has_keep:
      weights = weights * keep[:, None, :]
    return jnp.einsum('hqs,hsk->hqk', weights.astype(q.dtype), v).swapaxes(0, 1)

  def rows(query, key, value, query_segments, key_segments, *rest):
    rest = list(rest)
    bias = lift(rest.pop(0), layout.token_axes) if has_bias else None
    keep = rest.pop(0) if has_keep else None
    return jax.lax.map(lambda row: one_row(row, bias), (query, key, value, query_segments, key_segments, keep))

  by_row = P(layout.token_axes)
  arguments = [query, key, value, query_segments, key_segments]
  specs = [by_row] * 5
  if has_bias:
    arguments, specs = [*arguments, bias], [*specs, P()]
  if has_keep:
    arguments, specs = [*arguments, keep], [*specs, by_row]
  return layout.per_token_shard(rows, tuple(specs), by_row)(*arguments)


class MultiHeadAttention(nn.Module):
  """Attention with kernels stored 2-D, `[embed, heads * kv]`, as in released T5X checkpoints."""

  config: ModelConfig
  layout: Layout
  deterministic: bool
  causal: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    memory: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    bias: jax.Array | None = None,
  ) -> jax.Array:
    """Attends from `x` `[batch, query length, embed]` to `memory` `[batch, key length, embed]`; returns `x`'s shape."""
    config = self.config
    joined = (config.emb_dim, config.num_heads * config.head_dim)

    def kernel(name, kind='attention'):
      return Kernel(joined, ('embed', 'joined_kv'), initializers.kernel(config, kind), name=name)()

    kernels = {'query': kernel('query', 'query'), 'key': kernel('key'), 'value': kernel('value')}
    if memory is x:
      query, key, value = self._project(x, *kernels.values())
    else:
      (query,), (key, value) = (
        self._project(x, kernels['query']),
        self._project(memory, kernels['key'], kernels['value']),
      )
    y = dispatch_attention(
      self, config, self.layout, query, key, value, query_segments, key_segments, bias,
      deterministic=self.deterministic, causal=self.causal,
    )  # fmt: skip
    y = y.reshape(*y.shape[:-2], joined[1])
    return Dense(joined[::-1], ('joined_kv', 'embed'), initializers.kernel(config, 'attention'), name='out')(y)

  def _project(self, source: jax.Array, *kernels: jax.Array) -> list[jax.Array]:
    """Maps `[batch, length, embed]` by each kernel to `[batch, length, heads, kv]`.

    One product by the kernels side by side is faster than one by each, and its gradient reads the source once; where
    their columns are split over devices they stay apart.
    """
    if not self.layout.splits('joined_kv'):
      together = source @ jnp.concatenate(kernels, axis=1).astype(source.dtype)
      parts = jnp.split(together, len(kernels), axis=-1)
    else:
      parts = [source @ kernel.astype(source.dtype) for kernel in kernels]
    return [y.reshape(*y.shape[:-1], self.config.num_heads, self.config.head_dim) for y in parts]


def dispatch_attention(
  module: nn.Module,
  config: ModelConfig,
  layout: Layout,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  query_segments: jax.Array,
  key_segments: jax.Array,
  bias: jax.Array | None,
  *,
  deterministic: bool,
  causal: bool,
) -> jax.Array:
  """Draws the dropout of the attention weights for `module` and attends in the form that suits the layout's devices."""
  keep = None
  if config.dropout_rate > 0 and not deterministic:
    rate = config.dropout_rate
    shape = (query.shape[0], config.num_heads, key.shape[1])
    keep = jax.random.bernoulli(module.make_rng('dropout'), 1 - rate, shape) / (1 - rate)
  arguments = (query, key, value, query_segments, key_segments, bias, keep)
  if layout.runs_on_cpu:
    return attend_by_row(layout, *arguments, causal=causal)
  # Recomputing the scores backwards costs one product more of six and keeps nothing that grows with length squared.
  return jax.checkpoint(functools.partial(attend, causal=causal))(*arguments)
