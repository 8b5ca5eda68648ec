"""Attention over keys of the same segment, with a bias that is added to the scores.

T5 does not divide the scores by sqrt(head_dim) at run time: the factor is folded in the query's initial values
(Raffel et al. 2020), so do not rescale here.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from switch_jax.kernels.fused_attention import MASKED, attend_fused, fits
from switch_jax.kernels.products import transposed
from switch_jax.kernels.table import forms
from switch_jax.parallel import Layout, lift


def attention(
  layout: Layout,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  query_segments: jax.Array,
  key_segments: jax.Array,
  bias: jax.Array | None = None,
  keep: jax.Array | None = None,
  prefix: jax.Array | None = None,
  *,
  causal: bool = False,
) -> jax.Array:
  """Attention in the form of a layout's devices; the softmax is in float32.

  Args:
    layout: where the rows lie.
    query, key, value: `[batch, length, heads, kv]`.
    query_segments, key_segments: int32 `[batch, length]`; a query sees the keys of its own segment, none of segment 0.
    bias: float32 `[heads, query length, key length]`.
    keep: dropout factors of the weights `[batch, heads, key length]` (0 or 1 / (1 - rate)), equal for all queries.
    prefix: int32 `[batch, length]` of self-attention, 1 for positions that see each other though they be later; None
      for none.
    causal: hide later keys.

  Returns:
    `[batch, query length, heads, kv]` in the dtype of `query`.
  """
  arguments = (query, key, value, query_segments, key_segments, bias, keep, prefix)
  form = forms(layout)['attention']
  if form == 'by_row':
    return attend_by_row(layout, *arguments, causal=causal)
  if form == 'fused' and fits(layout, query, key):
    return attend_fused(layout, *arguments, causal=causal)
  # Recomputing the scores backwards costs one product more of six and keeps nothing that grows with length squared.
  return jax.checkpoint(functools.partial(attend, causal=causal))(*arguments)


def _scores_bias(query_segments, key_segments, bias, prefix, causal):
  """Returns the float32 additive bias `[..., heads or 1, query, key]` of one row or many, masks included."""
  key_segments = jnp.where(key_segments > 0, key_segments, -1)  # which no query has
  allowed = query_segments[..., :, None] == key_segments[..., None, :]
  if causal:
    query_length, key_length = allowed.shape[-2:]
    visible = jnp.tril(jnp.ones((query_length, key_length), bool))
    if prefix is not None:
      visible |= (prefix[..., :, None] & prefix[..., None, :]) > 0
    allowed &= visible
  mask = jnp.where(allowed, 0.0, MASKED)[..., None, :, :]
  return mask if bias is None else mask + bias


def attend(query, key, value, query_segments, key_segments, bias=None, keep=None, prefix=None, *, causal=False):
  """The plain form of `attention`: whole arrays of scores."""
  scores = jnp.einsum('bqhk,bshk->bhqs', query, key, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(scores + _scores_bias(query_segments, key_segments, bias, prefix, causal), axis=-1)
  if keep is not None:
    weights = weights * keep[:, :, None, :]
  return jnp.einsum('bhqs,bshk->bqhk', weights.astype(query.dtype), value)


# Turns of the loop over rows that are written out where the scores of a row are large. XLA:CPU fills the cores with
# several rows then, and neither cuts their numbers out of larger arrays nor writes them back; compiling takes longer.
_ROWS_WRITTEN_OUT, _LARGE_SCORES = 16, 1 << 18


def attend_by_row(
  layout, query, key, value, query_segments, key_segments, bias=None, keep=None, prefix=None, *, causal=False
):
  """The form for XLA:CPU: one row of the batch at a time.

  The scores of one row fit the cache, and computing them again in the backward pass costs less than storing them: a
  third of the time of `attend` there. The rows of a shard are mapped inside the shard, since a map over a split axis
  would gather it.
  """
  has_bias, has_keep, has_prefix = bias is not None, keep is not None, prefix is not None

  @jax.checkpoint
  def one_row(row, bias):
    q, k, v, query_segments, key_segments, keep, prefix = row
    q, k, v = (x.swapaxes(0, 1) for x in (q, k, v))  # [heads, length, kv]
    scores_bias = _scores_bias(query_segments, key_segments, bias, prefix, causal)
    weights = jax.nn.softmax(_score(q, k) + scores_bias, axis=-1)
    if has_keep:
      weights = weights * keep[:, None, :]
    return _weigh(weights.astype(q.dtype), v).swapaxes(0, 1)

  def rows(query, key, value, query_segments, key_segments, *optional):
    rest = list(optional)
    bias = lift(rest.pop(0), layout.token_axes) if has_bias else None
    keep = rest.pop(0) if has_keep else None
    prefix = rest.pop(0) if has_prefix else None
    scores = query.shape[1] * query.shape[2] * key.shape[1]
    unroll = _ROWS_WRITTEN_OUT if scores >= _LARGE_SCORES else 1
    arrays = (query, key, value, query_segments, key_segments, keep, prefix)
    return jax.lax.scan(lambda _, row: ((), one_row(row, bias)), (), arrays, unroll=unroll)[1]

  by_row = P(layout.token_axes)
  arguments = [query, key, value, query_segments, key_segments]
  specs = [by_row] * 5
  if has_bias:
    arguments, specs = [*arguments, bias], [*specs, P()]
  if has_keep:
    arguments, specs = [*arguments, keep], [*specs, by_row]
  if has_prefix:
    arguments, specs = [*arguments, prefix], [*specs, by_row]
  return layout.per_token_shard(rows, tuple(specs), by_row)(*arguments)


@jax.custom_vjp
def _score(query, key):
  """Returns the float32 product of `[heads, query, kv]` and `[heads, key, kv]`, `[heads, query, key]`."""
  return jnp.einsum('hqk,hsk->hqs', query, key, preferred_element_type=jnp.float32)


def _score_backward(kept, gradient):
  query, key = kept
  to_query = jnp.einsum('hqs,hsk->hqk', gradient, key)
  return to_query.astype(query.dtype), _sum_over_queries(query, gradient).astype(key.dtype)


_score.defvjp(lambda query, key: (_score(query, key), (query, key)), _score_backward)


@jax.custom_vjp
def _weigh(weights, value):
  """Returns the sum `[heads, query, kv]` of the values `[heads, key, kv]` by weights `[heads, query, key]`."""
  return jnp.einsum('hqs,hsk->hqk', weights, value)


def _weigh_backward(kept, gradient):
  weights, value = kept
  return jnp.einsum('hqk,hsk->hqs', gradient, value), _sum_over_queries(gradient, weights)


_weigh.defvjp(lambda weights, value: (_weigh(weights, value), (weights, value)), _weigh_backward)


def _sum_over_queries(x, matrix):
  """Returns the product `[heads, key, kv]` of `[heads, query, key]`, transposed, by `[heads, query, kv]`.

  As XLA:CPU's fast product takes its factors (see `products`), with the narrow one and not the matrix transposed.
  """
  return (transposed(x) @ matrix).swapaxes(-1, -2)
