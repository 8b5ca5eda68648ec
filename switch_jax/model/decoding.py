"""One token at a time: what `Transformer` computes for the newest position of every row, beside what it keeps.

Switch layers never drop a token here: a step has few tokens, and capacity is for many.
"""

import jax
import jax.numpy as jnp

from switch_jax.config import ModelConfig
from switch_jax.kernels import MASKED
from switch_jax.model.attention import MultiHeadAttention
from switch_jax.model.cache import Cache, Memory, Pair
from switch_jax.model.layers import activation_dtype
from switch_jax.model.parameters import Parameters
from switch_jax.model.transformer import Transformer, block_length
from switch_jax.parallel import Layout


def start_memory(
  config: ModelConfig, layout: Layout, params: Parameters, encoded: jax.Array, encoder_tokens: jax.Array
) -> Memory:
  """Returns what decoding needs of the examples.

  Args:
    config, layout, params: the model.
    encoded: the encoder's output `[examples, inputs length, embed]`.
    encoder_tokens: int32 `[examples, inputs length]`, 0 for padding.
  """
  attention = MultiHeadAttention(config, layout, deterministic=True)

  def keys_and_values(params: Parameters) -> Pair:
    return attention.apply({'params': params}, encoded, method='keys_and_values')

  def of_layers(layers: Parameters) -> dict[str, Parameters]:
    return {n: layer['encoder_decoder_attention'] for n, layer in layers.items() if n.startswith('layers_')}

  if config.scan_layers:
    blocks = of_layers(params['decoder']['blocks'])
    layers = {name: jax.lax.map(keys_and_values, stacked) for name, stacked in blocks.items()}
  else:
    layers = {name: keys_and_values(layer) for name, layer in of_layers(params['decoder']).items()}
  return Memory(layers, jnp.where(encoder_tokens > 0, 0.0, MASKED)[:, None, None])


def empty_cache(config: ModelConfig, layout: Layout, rows: int, length: int) -> Cache:
  """Returns a cache for `length` positions of `rows` rows that holds nothing yet."""
  names: tuple[str | None, ...] = ('batch', 'heads', None, None)
  shape: tuple[int, ...] = (rows, config.num_heads, length, config.head_dim)
  count = config.num_decoder_layers
  if config.scan_layers:
    count = block_length(config, 'decoder')
    names, shape = (None, *names), (config.num_decoder_layers // count, *shape)

  def zeros(i: int) -> jax.Array:
    is_switch = i in config.switch_attention_layers('decoder')
    return layout.constrain(jnp.zeros(shape, jnp.float32 if is_switch else activation_dtype(config)), *names)

  return {f'layers_{i}': (zeros(i), zeros(i)) for i in range(count)}


def decode_step(
  config: ModelConfig,
  layout: Layout,
  params: Parameters,
  tokens: jax.Array,
  cache: Cache,
  memory: Memory | None,
  position: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Computes the newest position of every row.

  Args:
    config, layout, params: the model.
    tokens: int32 `[rows]`, the decoder's input at this position; the start symbol 0 at position 0. Rows that belong to
      one example of the memory follow each other.
    cache: what the positions before have left.
    memory: of the examples; None for a model without an encoder.
    position: int32 scalar from 0 to the cache's length - 1.

  Returns:
    Float32 logits `[rows, vocab]` for the token that follows, and the cache with this position.
  """
  model = Transformer(config, layout)
  return model.apply({'params': params}, tokens, cache, memory, position, method='decode_step')
