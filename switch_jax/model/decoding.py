"""One token at a time: the decoder with the keys and values of earlier positions kept.

The modules here have the parameters of those in `transformer` and compute what they compute for the newest position of
every row. Keys and values are arguments and results, no state of Flax's. Each layer puts the newest position in its
place before it attends, never after: only then does a loop write into what it carries instead of a copy of it.

Switch layers never drop a token here: a step has few tokens, and capacity is for many.

Axes: rows of the step, which are examples or several hypotheses (fan-out) of each; heads; length; kv.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from switch_jax.config import ModelConfig
from switch_jax.model import initializers
from switch_jax.model.attention import MASKED, RelativePositionBias
from switch_jax.model.layers import Dense, Embed, LayerNorm, MlpBlock, activation_dtype
from switch_jax.model.parameters import Parameters
from switch_jax.model.switch import SwitchLayer
from switch_jax.model.transformer import Logits, block_length
from switch_jax.parallel import Layout

Pair = tuple[jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
  """What a decoder knows of its examples; it stays as it is while they are decoded.

  Attributes:
    layers: by layer (`layers_0`), or by layer of a block with a leading axis of blocks where layers are scanned, the
      keys and values of attention to the encoder's output, each `[examples, heads, inputs length, kv]`.
    bias: float32 `[examples, 1, 1, inputs length]`, 0 for tokens and `MASKED` for padding.
  """

  layers: dict[str, Pair]
  bias: jax.Array


# By layer as in `Memory`, the keys and values of the rows so far, each `[rows, heads, length, kv]`.
Cache = dict[str, Pair]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepContext:
  """What the layers of a step share.

  Attributes:
    position: int32 scalar, the newest position.
    bias: float32 `[heads, 1, length]`: the relative-position bias from the newest position, `MASKED` after it.
    memory_bias: `Memory.bias`.
  """

  position: jax.Array
  bias: jax.Array
  memory_bias: jax.Array


def _heads_first(y: jax.Array, config: ModelConfig) -> jax.Array:
  """Maps `[rows, length, heads * kv]` to `[rows, heads, length, kv]`."""
  return y.reshape(*y.shape[:-1], config.num_heads, config.head_dim).swapaxes(1, 2)


def _heads_last(y: jax.Array) -> jax.Array:
  """Maps `[rows, heads, length, kv]` to `[rows, length, heads * kv]`."""
  y = y.swapaxes(1, 2)
  return y.reshape(*y.shape[:2], -1)


def _projection(config: ModelConfig, name: str, kind: str = 'attention') -> Dense:
  shape = (config.emb_dim, config.num_heads * config.head_dim)
  return Dense(shape, ('embed', 'joined_kv'), initializers.kernel(config, kind), name=name)


def _output(config: ModelConfig) -> Dense:
  shape = (config.num_heads * config.head_dim, config.emb_dim)
  return Dense(shape, ('joined_kv', 'embed'), initializers.kernel(config, 'attention'), name='out')


def attend_to_cache(query: jax.Array, new: Pair, kept: Pair, context: StepContext) -> tuple[jax.Array, Pair]:
  """Attention of the newest position to the row up to and including itself; the softmax is in float32.

  Args:
    query: `[rows, heads, 1, kv]`.
    new: key and value of the position, `[rows, heads, 1, kv]`.
    kept: keys and values `[rows, heads, length, kv]`.
    context: gives the position and its bias.

  Returns:
    `[rows, heads, 1, kv]` in the dtype of `query`, and what is kept with the position in it.
  """
  put = lambda old, y: jax.lax.dynamic_update_slice_in_dim(old, y.astype(old.dtype), context.position, axis=2)  # noqa: E731
  key, value = kept = jax.tree.map(put, kept, new)
  scores = jnp.einsum('rhqk,rhsk->rhqs', query, key, preferred_element_type=jnp.float32) + context.bias
  weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
  return jnp.einsum('rhqs,rhsk->rhqk', weights, value), kept


class CachedSelfAttention(nn.Module):
  """`MultiHeadAttention` of the newest position to the row so far."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x: jax.Array, kept: Pair, context: StepContext) -> tuple[jax.Array, Pair]:
    """Maps `[rows, 1, embed]` to the same shape; returns what is kept of self-attention too."""
    config = self.config
    query, key, value = (
      _heads_first(_projection(config, name, kind)(x), config)
      for name, kind in (('query', 'query'), ('key', 'attention'), ('value', 'attention'))
    )
    y, kept = attend_to_cache(query, (key, value), kept, context)
    return _output(config)(_heads_last(y)), kept


class CachedSwitchSelfAttention(nn.Module):
  """`SwitchSelfAttention` of the newest position to the row so far; float32, one key for keys and values."""

  config: ModelConfig
  layout: Layout

  @nn.compact
  def __call__(self, x: jax.Array, kept: Pair, context: StepContext) -> tuple[jax.Array, Pair]:
    """Maps `[rows, 1, embed]` to the same shape; returns what is kept of self-attention too."""
    config, y, real = self.config, x.astype(jnp.float32), jnp.ones(x.shape[:2], bool)
    joined = config.num_heads * config.head_dim

    def project(name, init):
      layer = SwitchLayer(
        config, self.layout, True, config.moe.attention_expert, joined, init, never_drop=True, name=name
      )  # fmt: skip
      return _heads_first(layer(y, real)[0], config)

    query, key = project('query', 'query'), project('key_value', 'attention')
    z, kept = attend_to_cache(query, (key, key), kept, context)
    return _output(config)(_heads_last(z)).astype(x.dtype), kept


class CachedCrossAttention(nn.Module):
  """`MultiHeadAttention` to the encoder's output, whose keys and values are kept once for all rows of an example."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x: jax.Array, memory: Pair, memory_bias: jax.Array) -> jax.Array:
    """Maps `[rows, 1, embed]` to the same shape."""
    config, (key, value) = self.config, memory
    examples = key.shape[0]
    query = _projection(config, 'query', 'query')(x)
    # The hypotheses of an example are the queries of one attention.
    query = _heads_first(query.reshape(examples, -1, query.shape[-1]), config)
    scores = jnp.einsum('bhqk,bhsk->bhqs', query, key, preferred_element_type=jnp.float32) + memory_bias
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    y = _heads_last(jnp.einsum('bhqs,bhsk->bhqk', weights, value))
    return _output(config)(y.reshape(*x.shape[:2], -1))


class MemoryProjection(nn.Module):
  """The keys and values of one layer's attention to the encoder's output."""

  config: ModelConfig
  layout: Layout

  @nn.compact
  def __call__(self, encoded: jax.Array) -> Pair:
    """Maps `[examples, inputs length, embed]` to two of `[examples, heads, inputs length, kv]`."""
    parts = (_heads_first(_projection(self.config, name)(encoded), self.config) for name in ('key', 'value'))
    key, value = (self.layout.constrain(y, 'batch', 'heads', None, None) for y in parts)
    return key, value


class StepLayer(nn.Module):
  """One decoder layer at the newest position, or its part of the memory."""

  config: ModelConfig
  layout: Layout
  index: int

  @nn.compact
  def __call__(self, x: jax.Array, kept: Pair | None, memory: Pair | None, context: StepContext | None) -> Any:
    """Maps `[rows, 1, embed]` to the same shape, and returns what is kept of self-attention.

    Without anything kept, `x` is the encoder's output and the layer's keys and values of it are returned.
    """
    config = self.config
    norm = lambda name: LayerNorm(config.layer_norm_epsilon, name=name)  # noqa: E731
    cross_attention = 'encoder_decoder_attention'
    if kept is None:
      return MemoryProjection(config, self.layout, name=cross_attention)(x)

    y = norm('pre_self_attention_layer_norm')(x)
    if self.index in config.switch_attention_layers('decoder'):
      attention = CachedSwitchSelfAttention(config, self.layout, name='self_attention')
    else:
      attention = CachedSelfAttention(config, name='self_attention')
    y, kept = attention(y, kept, context)
    x = x + y

    y = norm('pre_cross_attention_layer_norm')(x)
    x = x + CachedCrossAttention(config, name=cross_attention)(y, memory, context.memory_bias)

    y = norm('pre_mlp_layer_norm')(x)
    if self.index in config.switch_layers('decoder'):
      y, _ = SwitchLayer(config, self.layout, True, never_drop=True, name='mlp')(y, jnp.ones(y.shape[:2], bool))
    else:
      y = MlpBlock(config, True, name='mlp')(y)
    return self.layout.constrain(x + y, 'batch', None, 'activation_embed'), kept


class StepBlock(nn.Module):
  """The layers of one scanned block at the newest position, or their part of the memory."""

  config: ModelConfig
  layout: Layout

  @nn.compact
  def __call__(
    self, x: jax.Array, kept: Cache | None, memory: dict[str, Pair] | None, context: StepContext | None
  ) -> tuple[jax.Array, dict[str, Pair]]:
    """Applies the layers in turn, as `StepLayer`; what they return stands under their names."""
    found = {}
    for i in range(block_length(self.config, 'decoder')):
      name = f'layers_{i}'
      layer = StepLayer(self.config, self.layout, i, name=name)
      if kept is None:
        found[name] = layer(x, None, None, None)
      else:
        x, found[name] = layer(x, kept[name], memory[name], context)
    return x, found


class StepStack(nn.Module):
  """The decoder's stack at the newest position, or its memory."""

  config: ModelConfig
  layout: Layout

  @nn.compact
  def __call__(
    self, x: jax.Array, cache: Cache | None = None, memory: Memory | None = None, position: jax.Array | None = None
  ) -> Any:
    """Applies the stack.

    Args:
      x: embedded tokens `[rows, 1, embed]`; or, without a cache, the encoder's output.
      cache: what is kept of earlier positions.
      memory: of the rows' examples.
      position: int32 scalar, the newest position.

    Returns:
      `[rows, 1, embed]`, or float32 logits where they are not tied to the embedding; and the cache with the position
      in it. Without a cache the memory's `layers`.
    """
    config, context = self.config, None
    if cache is not None:
      length = jax.tree.leaves(cache)[0].shape[-2]
      bias = RelativePositionBias(config, bidirectional=False, name='relpos_bias')
      row = jnp.where(jnp.arange(length) <= position, bias(1, length, position), MASKED)
      context = StepContext(position, row, memory.bias)
    layers = memory and memory.layers
    if config.scan_layers:
      scanned = nn.scan(
        StepBlock,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=(0, 0, nn.broadcast),
        length=config.num_decoder_layers // block_length(config, 'decoder'),
        unroll=config.scan_unroll,
      )
      x, found = scanned(config, self.layout, name='blocks')(x, cache, layers, context)
    else:
      found = {}
      for i in range(config.num_decoder_layers):
        name = f'layers_{i}'
        layer = StepLayer(config, self.layout, i, name=name)
        if cache is None:
          found[name] = layer(x, None, None, None)
        else:
          x, found[name] = layer(x, cache[name], layers[name], context)
    if cache is None:
      return found
    x = LayerNorm(config.layer_norm_epsilon, name='decoder_norm')(x)
    return (x if config.logits_via_embedding else Logits(config, name='logits_dense')(x)), found


class _Decoder(nn.Module):
  """Embedding and stack, with the parameters of `Transformer`."""

  config: ModelConfig
  layout: Layout

  def setup(self):
    self.token_embedder = Embed(self.config)
    self.decoder = StepStack(self.config, self.layout)

  def memory(self, encoded):
    return self.decoder(encoded)

  def step(self, tokens, cache, memory, position):
    x = self.layout.constrain(self.token_embedder(tokens[:, None]), 'batch', None, 'activation_embed')
    x, cache = self.decoder(x, cache, memory, position)
    logits = self.token_embedder.attend(x) if self.config.logits_via_embedding else x
    return self.layout.constrain(logits[:, 0], 'batch', 'activation_vocab'), cache


def _for_steps(config: ModelConfig, layout: Layout) -> _Decoder:
  """Returns the module; whatever rows are routed together, nothing is dropped, so groups are left out."""
  if config.moe is not None:
    config = dataclasses.replace(config, moe=dataclasses.replace(config.moe, sequences_per_group=None))
  return _Decoder(config, layout)


def start_memory(
  config: ModelConfig, layout: Layout, params: Parameters, encoded: jax.Array, encoder_tokens: jax.Array
) -> Memory:
  """Returns what decoding needs of the examples.

  Args:
    config, layout, params: the model.
    encoded: the encoder's output `[examples, inputs length, embed]`.
    encoder_tokens: int32 `[examples, inputs length]`, 0 for padding.
  """
  layers = _for_steps(config, layout).apply({'params': params}, encoded, method='memory')
  bias = jnp.where(encoder_tokens > 0, 0.0, MASKED)[:, None, None]
  return Memory(layers, bias)


def empty_cache(config: ModelConfig, layout: Layout, rows: int, length: int) -> Cache:
  """Returns a cache for `length` positions of `rows` rows that holds nothing yet."""
  names = ('batch', 'heads', None, None)
  shape = (rows, config.num_heads, length, config.head_dim)
  count = config.num_decoder_layers
  if config.scan_layers:
    count = block_length(config, 'decoder')
    names, shape = (None, *names), (config.num_decoder_layers // count, *shape)

  def zeros(i):
    is_switch = i in config.switch_attention_layers('decoder')
    return layout.constrain(jnp.zeros(shape, jnp.float32 if is_switch else activation_dtype(config)), *names)

  return {f'layers_{i}': (zeros(i), zeros(i)) for i in range(count)}


def decode_step(
  config: ModelConfig,
  layout: Layout,
  params: Parameters,
  tokens: jax.Array,
  cache: Cache,
  memory: Memory,
  position: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Computes the newest position of every row.

  Args:
    config, layout, params: the model.
    tokens: int32 `[rows]`, the decoder's input at this position; the start symbol 0 at position 0. Rows that belong to
      one example of the memory follow each other.
    cache: what the positions before have left.
    memory: of the examples.
    position: int32 scalar from 0 to the cache's length - 1.

  Returns:
    Float32 logits `[rows, vocab]` for the token that follows, and the cache with this position.
  """
  model = _for_steps(config, layout)
  return model.apply({'params': params}, tokens, cache, memory, position, method='step')
