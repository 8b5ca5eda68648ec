"""T5 with Switch layers, or its decoder alone: layers assembled into stacks, the only place that scans and remats."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from switch_jax import kernels
from switch_jax.config import ModelConfig
from switch_jax.model import initializers
from switch_jax.model.attention import MultiHeadAttention, RelativePositionBias
from switch_jax.model.cache import Cache, Memory, Pair, StepContext
from switch_jax.model.layers import Dropout, Embed, LayerNorm, MlpBlock, product
from switch_jax.model.routing import RoutingStatistics
from switch_jax.model.switch import SwitchLayer
from switch_jax.model.switch_attention import SwitchSelfAttention
from switch_jax.parallel import Layout

Stack = Literal['encoder', 'decoder']
Statistics = dict[str, RoutingStatistics]
# The arguments of `RelativePositionBias` to what it returns, or to None.
Bias = Callable[..., jax.Array | None]
# By layer, the keys and values of earlier positions and those of the encoder's output, if there is one.
LayerCaches = dict[str, tuple[Pair, Pair | None]]

# What remat keeps by name in every policy but `full`: or all-to-alls, and products with a derivative of their own,
# would run again.
_KEPT = ('to_experts', 'from_experts', 'product')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """What the layers of a stack share.

  Attributes:
    real: bool `[batch, length]`, False for padding.
    query_segments, key_segments: int32 `[batch, length]` for self-attention.
    bias: float32 `[heads, length, length]`; None where positions are rotary.
    prefix: int32 `[batch, length]` of causal self-attention, 1 for the tokens that see each other whichever comes
      first; None for none.
    encoded: the encoder's output `[batch, inputs length, embed]`; None in the encoder and where there is none.
    memory_query_segments, memory_key_segments: the same for attention to `encoded`.
  """

  real: jax.Array
  query_segments: jax.Array
  key_segments: jax.Array
  bias: jax.Array | None
  prefix: jax.Array | None = None
  encoded: jax.Array | None = None
  memory_query_segments: jax.Array | None = None
  memory_key_segments: jax.Array | None = None


class Layer(nn.Module):
  """One encoder or decoder layer; pre-norm, residual around each part.

  It serves whole rows, which it keeps where it is given a cache, and the newest position beside those kept before.
  """

  config: ModelConfig
  layout: Layout
  deterministic: bool
  stack: Stack
  index: int

  @nn.compact
  def __call__(
    self, x: jax.Array, context: Any, cache: tuple[Pair, Pair | None] | None = None
  ) -> tuple[jax.Array, Statistics, Pair | None]:
    """Applies the layer.

    Args:
      x: `[batch, length, embed]`; `[rows, 1, embed]` with a `StepContext`.
      context: a `Context`; with a cache a `StepContext` for the newest position, a `Context` for the first ones.
      cache: keys and values of the positions before, and those of the encoder's output.

    Returns:
      The shape of `x`; without a cache, the statistics of the routers by name (`mlp`, ...); with one, the keys and
      values with these positions in them.
    """
    config, is_decoder = self.config, self.stack == 'decoder'
    drop = lambda y: Dropout(config.dropout_rate, self.deterministic)(y)  # noqa: E731
    norm = lambda name: LayerNorm(config.layer_norm_epsilon, name=name)  # noqa: E731
    common = dict(config=config, layout=self.layout, deterministic=self.deterministic)
    statistics: Statistics = {}
    kept = None
    clean = lambda y: y * context.real[..., None].astype(y.dtype) if config.zeroes_padding else y  # noqa: E731

    name = 'self_attention' if is_decoder else 'attention'
    y = clean(norm(f'pre_{name}_layer_norm')(x))
    has_experts = self.index in config.switch_attention_layers(self.stack)
    attention = (SwitchSelfAttention if has_experts else MultiHeadAttention)(**common, causal=is_decoder, name=name)
    if isinstance(context, StepContext):
      assert cache is not None
      y, kept = attention.step(y, cache[0], context)
    else:
      segments = context.query_segments, context.key_segments
      y, statistics, kept = attention(y, y, segments, context.bias, context.real, context.prefix, cache and cache[0])
    x = x + drop(y)

    if is_decoder and not config.is_decoder_only:
      y = clean(norm('pre_cross_attention_layer_norm')(x))
      attention = MultiHeadAttention(**common, name='encoder_decoder_attention')
      if cache is None:
        y, _, _ = attention(y, context.encoded, (context.memory_query_segments, context.memory_key_segments))
      else:
        assert cache[1] is not None
        y = attention.step_to_memory(y, cache[1], context)
      x = x + drop(y)

    y = clean(norm('pre_mlp_layer_norm')(x))
    if self.index in config.switch_layers(self.stack):
      y, statistics['mlp'] = SwitchLayer(**common, name='mlp')(y, context.real, never_drop=cache is not None)
    else:
      y = MlpBlock(config, self.layout, self.deterministic, name='mlp')(y)
    x = self.layout.constrain(x + drop(y), 'batch', 'length' if cache is None else None, 'activation_embed')
    return x, statistics if cache is None else {}, kept


def block_length(config: ModelConfig, stack: Stack) -> int:
  """Returns the layers of a scanned block: the shortest period after which dense and Switch layers repeat."""
  count = config.num_layers(stack)
  kinds = [(i in config.switch_layers(stack), i in config.switch_attention_layers(stack)) for i in range(count)]
  return next(n for n in range(1, count + 1) if count % n == 0 and kinds == kinds[:n] * (count // n))


class Block(nn.Module):
  """The layers of one scanned block."""

  config: ModelConfig
  layout: Layout
  deterministic: bool
  stack: Stack

  @nn.compact
  def __call__(self, x: jax.Array, context: Any, cache: LayerCaches | None = None) -> tuple[jax.Array, Any]:
    """Applies the layers in turn; returns what they return beside `x`, by name (`layers_1`, ...)."""
    statistics, kept = {}, {}
    for i in range(block_length(self.config, self.stack)):
      name = f'layers_{i}'
      layer = Layer(self.config, self.layout, self.deterministic, self.stack, i, name=name)
      x, statistics[name], kept[name] = layer(x, context, cache and cache[name])
    return x, (statistics, kept)


def _remat(module: type[nn.Module], config: ModelConfig) -> type[nn.Module]:
  """Returns the module with the configuration's rematerialisation."""
  if config.remat_policy == 'none':
    return module
  policies = jax.checkpoint_policies
  policy = {
    'full': policies.nothing_saveable,
    'minimal': policies.save_from_both_policies(
      policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(*_KEPT)
    ),
  }[config.remat_policy]
  return nn.remat(module, prevent_cse=not config.scan_layers, policy=policy)


def _named(statistics: Statistics, layer: str, found: dict[str, RoutingStatistics]) -> None:
  """Files the statistics of one layer under `encoder_1` (its feed-forward router) or `encoder_1_<router>`."""
  for router, value in statistics.items():
    found[layer if router == 'mlp' else f'{layer}_{router}'] = value


class Logits(nn.Module):
  """The output projection of a model whose logits are not tied to the embedding."""

  config: ModelConfig
  layout: Layout

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns float32 logits `[batch, length, vocab]`."""
    shape = (self.config.emb_dim, self.config.vocab_size)
    init = nn.with_logical_partitioning(initializers.kernel(self.config, 'logits'), ('embed', 'vocab'))
    kernel = self.param('kernel', init, shape, jnp.float32)
    return product(x, kernel, self.config, self.layout, dtype=jnp.dtype('float32'))


class LayerStack(nn.Module):
  """All layers of the encoder or of the decoder, one by one or scanned, and the final norm."""

  config: ModelConfig
  layout: Layout
  deterministic: bool
  stack: Stack

  @nn.compact
  def __call__(
    self, x: jax.Array, context_of: Callable[[Bias], Any], cache: LayerCaches | None = None
  ) -> tuple[jax.Array, Statistics, Cache]:
    """Applies the stack.

    Args:
      x: embedded tokens `[batch, length, embed]`; `[rows, 1, embed]` with a `StepContext`.
      context_of: given the stack's relative-position bias (None where positions are rotary), returns what the layers
        share, as of `Layer`.
      cache: by layer, what is kept of earlier positions and of the encoder's output.

    Returns:
      `[batch, length, embed]`, or float32 logits `[batch, length, vocab]` from a decoder whose logits are not tied to
      the embedding; without a cache the statistics by layer (`encoder_1`, `decoder_3`, ...); with one what is kept.
    """
    config = self.config
    bias: Bias = lambda *positions: None  # noqa: E731
    if config.positions == 'relative_bias':
      bias = RelativePositionBias(config, self.stack == 'encoder', name='relpos_bias')
    context = context_of(bias)
    x = Dropout(config.dropout_rate, self.deterministic)(x)
    found: Statistics = {}
    if config.scan_layers:
      period = block_length(config, self.stack)
      scanned = nn.scan(
        _remat(Block, config),
        variable_axes={'params': 0},
        split_rngs={'params': True, 'dropout': True, 'jitter': True},
        in_axes=(nn.broadcast, 0),
        length=config.num_layers(self.stack) // period,
        unroll=config.scan_unroll,
        metadata_params={nn.PARTITION_NAME: 'layers'},
      )
      blocks = scanned(config, self.layout, self.deterministic, self.stack, name='blocks')
      x, (stacked, kept) = blocks(x, context, cache)
      for i in range(config.num_layers(self.stack)):
        layer = jax.tree.map(lambda array, b=i // period: array[b], stacked[f'layers_{i % period}'])
        _named(layer, f'{self.stack}_{i}', found)
    else:
      layer_class, kept = _remat(Layer, config), {}
      for i in range(config.num_layers(self.stack)):
        name = f'layers_{i}'
        layer = layer_class(config, self.layout, self.deterministic, self.stack, i, name=name)
        x, statistics, kept[name] = layer(x, context, cache and cache[name])
        _named(statistics, f'{self.stack}_{i}', found)
    x = LayerNorm(config.layer_norm_epsilon, name=f'{self.stack}_norm')(x)
    x = Dropout(config.dropout_rate, self.deterministic)(x)
    if self.stack == 'decoder' and not config.logits_via_embedding:
      x = Logits(config, self.layout, name='logits_dense')(x)
    return x, found, kept


class Transformer(nn.Module):
  """The encoder-decoder, or the decoder alone where the configuration has no encoder layers.

  Attributes:
    config: what is computed.
    layout: where it is computed.
    deterministic: evaluation: no dropout, no exploration, the evaluation capacity.
  """

  config: ModelConfig
  layout: Layout
  deterministic: bool = True

  def setup(self) -> None:
    arguments = (self.config, self.layout, self.deterministic)
    self.token_embedder = Embed(self.config, self.layout)
    if not self.config.is_decoder_only:
      self.encoder = LayerStack(*arguments, 'encoder')
    self.decoder = LayerStack(*arguments, 'decoder')

  def encode(self, tokens: jax.Array, segments: jax.Array | None = None) -> tuple[jax.Array, Statistics]:
    """Returns the encoder's output `[batch, length, embed]` for int32 tokens `[batch, length]`, and statistics.

    Args:
      tokens: 0 is padding.
      segments: int32 segment ids of packed examples, 0 for padding; None for one example a row.
    """
    keys = (tokens > 0).astype(jnp.int32) if segments is None else segments
    queries = keys if self.config.mask_padding_queries else jnp.maximum(keys, 1)
    x = self.layout.constrain(self.token_embedder(tokens), 'batch', 'length', 'activation_embed')
    length = tokens.shape[1]
    y, statistics, _ = self.encoder(x, lambda bias: Context(keys > 0, queries, keys, bias(length, length)))
    if self.config.zeroes_padding:
      y = y * (keys > 0)[..., None].astype(y.dtype)
    return y, statistics

  def decode(
    self,
    tokens: jax.Array,
    segments: jax.Array | None = None,
    prefix: jax.Array | None = None,
    encoded: jax.Array | None = None,
    encoder_segments: jax.Array | None = None,
  ) -> tuple[jax.Array, Statistics]:
    """Returns float32 logits `[batch, length, vocab]` for the decoder's int32 input tokens, and statistics.

    Without `segments` every row is one example whose first token is the start symbol (0), so only zeros after it are
    padding; causal attention needs no mask for them.

    Args:
      tokens: `[batch, length]`.
      segments: int32 segment ids of packed examples, 0 for padding; None for one example a row.
      prefix: int32 `[batch, length]`, 1 for the tokens of a segment that see each other; None for none.
      encoded: the encoder's output `[batch, inputs length, embed]`; None without one.
      encoder_segments: int32 `[batch, inputs length]`, those of `encoded`.
    """
    if segments is None:
      queries = jnp.ones_like(tokens)
      if self.config.zeroes_padding:  # a target is the next input; the last one is taken to be there
        queries = jnp.concatenate([tokens[:, 1:] > 0, tokens[:, -1:] > 0], axis=1).astype(jnp.int32)
      real = (tokens > 0).at[:, 0].set(True)
    else:
      queries, real = segments, segments > 0
    x = self.layout.constrain(self.token_embedder(tokens), 'batch', 'length', 'activation_embed')
    length = tokens.shape[1]

    def context_of(bias):
      return Context(real, queries, queries, bias(length, length), prefix, encoded, queries, encoder_segments)

    x, statistics, _ = self.decoder(x, context_of)
    logits = self.token_embedder.attend(x) if self.config.logits_via_embedding else x
    return self.layout.constrain(logits, 'batch', 'length', 'activation_vocab'), statistics

  def prefill(self, tokens: jax.Array, cache: Cache, starts: jax.Array) -> Cache:
    """Puts the first positions of every row into a cache; see `decoding.prefill`."""
    length = tokens.shape[1]
    real = jnp.arange(length) >= starts[:, None]
    segments = real.astype(jnp.int32)
    x = self.layout.constrain(self.token_embedder(tokens), 'batch', None, 'activation_embed')
    prefix = segments if self.config.prefix_lm else None
    context_of = lambda bias: Context(real, segments, segments, bias(length, length), prefix)  # noqa: E731
    return self.decoder(x, context_of, {name: (kept, None) for name, kept in cache.items()})[2]

  def decode_step(
    self,
    tokens: jax.Array,
    cache: Cache,
    memory: Memory | None,
    position: jax.Array,
    starts: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache]:
    """Computes the newest position of every row; see `decoding.decode_step`."""
    length = jax.tree.leaves(cache)[0].shape[-2]

    def context_of(bias):
      row, places = bias(1, length, position), jnp.arange(length)
      seen = places <= position
      if starts is not None:
        seen &= places >= starts[:, None, None, None]
      row = jnp.where(seen, jnp.zeros((1, 1, length)) if row is None else row, kernels.MASKED)
      return StepContext(jnp.ones((tokens.shape[0], 1), bool), position, row, None if memory is None else memory.bias)

    x = self.layout.constrain(self.token_embedder(tokens[:, None]), 'batch', None, 'activation_embed')
    caches: LayerCaches = {n: (kept, None if memory is None else memory.layers[n]) for n, kept in cache.items()}
    x, _, cache = self.decoder(x, context_of, caches)
    logits = self.token_embedder.attend(x) if self.config.logits_via_embedding else x
    return self.layout.constrain(logits[:, 0], 'batch', 'activation_vocab'), cache

  def __call__(self, batch: dict[str, jax.Array]) -> tuple[jax.Array, Statistics]:
    """Returns float32 logits `[batch, targets length, vocab]` and the statistics of all routers by layer.

    Args:
      batch: `decoder_input_tokens` and, for packed examples, `decoder_segment_ids`; with an encoder its
        `encoder_input_tokens` and `encoder_segment_ids`; for prefix LM `decoder_causal_attention`, 1 for the tokens
        that see each other. All int32 `[batch, length]`.
    """
    tokens, segments = batch['decoder_input_tokens'], batch.get('decoder_segment_ids')
    if self.config.is_decoder_only:
      return self.decode(tokens, segments, batch['decoder_causal_attention'] if self.config.prefix_lm else None)
    encoder_tokens, encoder_segments = batch['encoder_input_tokens'], batch.get('encoder_segment_ids')
    encoded, statistics = self.encode(encoder_tokens, encoder_segments)
    memory_segments = (encoder_tokens > 0).astype(jnp.int32) if encoder_segments is None else encoder_segments
    logits, decoder_statistics = self.decode(tokens, segments, encoded=encoded, encoder_segments=memory_segments)
    return logits, statistics | decoder_statistics
