"""T5 attention in Flax: positions and projections, for whole rows or for the newest position."""

import bisect
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from switch_jax import kernels
from switch_jax.config import ModelConfig
from switch_jax.model import initializers
from switch_jax.model.cache import Pair, StepContext, attend_to_cache, attend_to_memory, heads_first, heads_last
from switch_jax.model.layers import Dense, Kernel, product
from switch_jax.model.rotary import rotate
from switch_jax.model.routing import RoutingStatistics
from switch_jax.parallel import Layout

Segments = tuple[jax.Array, jax.Array]


@functools.cache
def bucket_edges(num_buckets: int, max_distance: int) -> tuple[int, ...]:
  """Returns the first distance of each bucket after the exact ones, of one direction; of 16 up to 128: 12, 16, 23, ...

  Bucket exact + j begins where log(distance / exact) / log(max_distance / exact) * (num_buckets - exact) reaches j.
  Integers decide, on the host: 16, 32 and 64 lie on the edges themselves, where the last bit of a logarithm counts.
  """
  exact = num_buckets // 2
  steps = num_buckets - exact
  distances = range(max_distance + 1)
  powers = (max_distance**j * exact ** (steps - j) for j in range(1, steps))
  return tuple(bisect.bisect_left(distances, power, key=lambda distance: distance**steps) for power in powers)


def relative_position_bucket(
  offset: jax.Array, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> jax.Array:
  """Returns the int32 bucket of every offset key - query (Raffel et al. 2020, section 2.1).

  Half of the buckets are for exact small offsets, the others grow logarithmically up to `max_distance`; with
  `bidirectional` half of all are for keys after the query.
  """
  bucket: jax.Array | int = 0
  if bidirectional:
    num_buckets //= 2
    bucket = jnp.where(offset > 0, num_buckets, 0)
    distance = jnp.abs(offset)
  else:
    distance = jnp.maximum(-offset, 0)
  edges = jnp.asarray(bucket_edges(num_buckets, max_distance), jnp.int32)
  later = jnp.sum(distance[..., None] >= edges, axis=-1, dtype=jnp.int32)
  return bucket + jnp.minimum(distance, num_buckets // 2) + later


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


class MultiHeadAttention(nn.Module):
  """Attention with kernels stored 2-D, `[embed, heads * kv]`, as in released T5X checkpoints."""

  config: ModelConfig
  layout: Layout
  deterministic: bool
  causal: bool = False

  def setup(self) -> None:
    config = self.config
    joined = (config.emb_dim, config.num_heads * config.head_dim)

    def kernel(kind: initializers.Kind) -> Kernel:
      return Kernel(joined, ('embed', 'joined_kv'), initializers.kernel(config, kind))

    self.query, self.key, self.value = kernel('query'), kernel('attention'), kernel('attention')
    init = initializers.kernel(config, 'attention')
    self.out = Dense(config, self.layout, joined[::-1], ('joined_kv', 'embed'), init)

  def __call__(
    self,
    x: jax.Array,
    memory: jax.Array,
    segments: Segments,
    bias: jax.Array | None = None,
    real: jax.Array | None = None,
    prefix: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, RoutingStatistics]]:
    """Attends from `x` `[batch, query length, embed]` to `memory` `[batch, key length, embed]`.

    Args:
      x, memory: the same array in self-attention.
      segments: int32 segment ids of queries and of keys, each `[batch, length]`.
      bias: float32 `[heads, query length, key length]`.
      real: which tokens are no padding, for attention that routes them; unused here.
      prefix: int32 `[batch, length]`, 1 for the tokens that see each other whichever comes first; None for none.

    Returns:
      The shape of `x`; and the statistics of its routers, of which there are none.
    """
    if memory is x:
      query, key, value = self._project(x, self.query(), self.key(), self.value())
      query, key = with_positions(self.config, query, key)
    else:
      (query,), (key, value) = self._project(x, self.query()), self._project(memory, self.key(), self.value())
    keep = draw_keep(self, self.config, query.shape[0], key.shape[1])
    y = kernels.attention(self.layout, query, key, value, *segments, bias, keep, prefix, causal=self.causal)
    return self.out(y.reshape(*y.shape[:-2], -1)), {}

  def step(self, x: jax.Array, kept: Pair, context: StepContext) -> tuple[jax.Array, Pair]:
    """Self-attention of the newest position, `[rows, 1, embed]`; returns what is kept, this position in it, too."""
    query, key, value = (self._heads_first(x, kernel()) for kernel in (self.query, self.key, self.value))
    query, key = with_positions(self.config, query, key, context.position)
    y, kept = attend_to_cache(query, (key, value), kept, context)
    return self.out(heads_last(y)), kept

  def keys_and_values(self, memory: jax.Array) -> Pair:
    """Returns the keys and values of `[batch, length, embed]`, each `[batch, heads, length, kv]`."""
    key, value = (self._heads_first(memory, kernel()) for kernel in (self.key, self.value))
    constrain = self.layout.constrain
    return constrain(key, 'batch', 'heads', None, None), constrain(value, 'batch', 'heads', None, None)

  def step_to_memory(self, x: jax.Array, memory: Pair, context: StepContext) -> jax.Array:
    """Attention of the newest position, `[rows, 1, embed]`, to keys and values kept once for each example."""
    assert context.memory_bias is not None  # there is an encoder
    # The hypotheses of an example are the queries of one attention.
    x_of_examples = x.reshape(memory[0].shape[0], -1, x.shape[-1])
    y = attend_to_memory(self._heads_first(x_of_examples, self.query()), memory, context.memory_bias)
    return self.out(heads_last(y).reshape(*x.shape[:2], -1))

  def _heads_first(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return heads_first(x @ kernel.astype(x.dtype), self.config.num_heads)

  def _project(self, source: jax.Array, *matrices: jax.Array) -> list[jax.Array]:
    """Maps `[batch, length, embed]` by each matrix to `[batch, length, heads, kv]`.

    Where their columns are split over devices they stay apart whatever the form; where their rows are, and have to be
    gathered, they are together.
    """
    multiply = lambda matrix: product(source, matrix, self.config, self.layout)  # noqa: E731
    together = kernels.forms(self.layout)['projections'] == 'together' or self.layout.splits('embed')
    if together and not self.layout.splits('joined_kv'):
      parts = jnp.split(multiply(jnp.concatenate(matrices, axis=1)), len(matrices), axis=-1)
    else:
      parts = [multiply(matrix) for matrix in matrices]
    return [y.reshape(*y.shape[:-1], self.config.num_heads, self.config.head_dim) for y in parts]


def with_positions(
  config: ModelConfig, query: jax.Array, key: jax.Array, position: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns queries and keys of self-attention, turned where the model's positions are rotary.

  Args:
    config: says so.
    query, key: `[batch, length, heads, kv]`; any shape if all are at one position.
    position: int32 scalar; None for the places in the row. Packed examples need no others: only distances count.
  """
  if config.positions != 'rotary':
    return query, key
  positions = jnp.arange(query.shape[1])[:, None] if position is None else position
  return rotate(query, positions, config.rotary_base), rotate(key, positions, config.rotary_base)


def draw_keep(module: nn.Module, config: ModelConfig, rows: int, key_length: int) -> jax.Array | None:
  """Draws dropout factors of attention weights, `[rows, heads, key length]`, from a module's stream; None for none."""
  if config.dropout_rate == 0 or module.deterministic:
    return None
  rate, shape = config.dropout_rate, (rows, config.num_heads, key_length)
  return jax.random.bernoulli(module.make_rng('dropout'), 1 - rate, shape) / (1 - rate)
