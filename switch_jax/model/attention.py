"""T5 attention: relative-position bias, masks from segment ids, and two ways to compute the same product.

T5 does not divide the scores by sqrt(head_dim) at run time: the factor is folded in the query's initial values
(Raffel et al. 2020), so do not rescale here.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from switch_jax.config import ModelConfig
from switch_jax.model import initializers
from switch_jax.model.layers import Dense
from switch_jax.parallel import TOKEN_AXES, Layout, lift

# Large enough that adding a score leaves it unchanged in float32: a query without keys averages all values, as T5X.
MASKED = -1e10


def relative_position_buckets(
  query_length: int, key_length: int, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> jax.Array:
  """Returns the int32 bucket `[query_length, key_length]` of every offset key - query (Raffel et al. 2020, 2.1).

  Half of the buckets are for exact small offsets, the others grow logarithmically up to `max_distance`; with
  `bidirectional` half of all are for keys after the query.
  """
  offset = jnp.arange(key_length)[None, :] - jnp.arange(query_length)[:, None]
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


class RelativePositionBias(nn.Module):
  """The bias that all layers of a stack share, one number for each head and bucket."""

  config: ModelConfig
  bidirectional: bool

  @nn.compact
  def __call__(self, query_length: int, key_length: int) -> jax.Array:
    """Returns the float32 bias `[heads, query_length, key_length]`."""
    config = self.config
    init = nn.with_logical_partitioning(initializers.relative_position_bias(config), ('heads', 'relpos_buckets'))
    shape = (config.num_heads, config.relpos_num_buckets)
    table = self.param('rel_embedding', init, shape, jnp.float32)
    buckets = relative_position_buckets(
      query_length,
      key_length,
      bidirectional=self.bidirectional,
      num_buckets=config.relpos_num_buckets,
      max_distance=config.relpos_max_distance,
    )
    # A one-hot product, whose gradient is a product too: the scatter of a plain lookup is slow on TPUs.
    one_hot = jax.nn.one_hot(buckets, config.relpos_num_buckets, dtype=jnp.float32)
    return jnp.einsum('hn,qkn->hqk', table, one_hot, precision=jax.lax.Precision.HIGHEST)


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
    bias = lift(rest.pop(0), TOKEN_AXES) if has_bias else None
    keep = rest.pop(0) if has_keep else None
    return jax.lax.map(lambda row: one_row(row, bias), (query, key, value, query_segments, key_segments, keep))

  arguments = [query, key, value, query_segments, key_segments]
  specs = [P(TOKEN_AXES)] * 5
  if has_bias:
    arguments, specs = [*arguments, bias], [*specs, P()]
  if has_keep:
    arguments, specs = [*arguments, keep], [*specs, P(TOKEN_AXES)]
  return layout.per_token_shard(rows, tuple(specs), P(TOKEN_AXES))(*arguments)


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

    def project(name, source, kind='attention'):
      y = Dense(joined, ('embed', 'joined_kv'), initializers.kernel(config, kind), name=name)(source)
      return y.reshape(*y.shape[:-1], config.num_heads, config.head_dim)  # [batch, length, heads, kv]

    query, key, value = project('query', x, 'query'), project('key', memory), project('value', memory)
    y = dispatch_attention(
      self, config, self.layout, query, key, value, query_segments, key_segments, bias,
      deterministic=self.deterministic, causal=self.causal,
    )  # fmt: skip
    y = y.reshape(*y.shape[:-2], joined[1])
    return Dense(joined[::-1], ('joined_kv', 'embed'), initializers.kernel(config, 'attention'), name='out')(y)


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
  return attend(*arguments, causal=causal)
