"""Logits of given inputs and targets: one forward pass in evaluation mode."""

import functools

import jax
import jax.numpy as jnp

from switch_jax.config import ConfigError, ModelConfig
from switch_jax.model import Transformer
from switch_jax.model.parameters import Parameters
from switch_jax.parallel import Layout


def compute_logits(
  model_config: ModelConfig,
  params: Parameters,
  encoder_input_tokens: jax.Array | None,
  decoder_input_tokens: jax.Array,
) -> jax.Array:
  """Returns float32 logits `[batch, targets length, vocab]` on one device, with the evaluation capacity.

  Args:
    model_config: what is computed; its evaluation capacity is used as it is.
    params: nested dict of float32 arrays under T5X's names.
    encoder_input_tokens: int `[batch, inputs length]`, one example a row; 0 is padding. None for a model without an
      encoder, which sees no prefix here.
    decoder_input_tokens: int `[batch, targets length]`, the targets shifted right by the start symbol 0.

  Raises:
    ConfigError: the token arrays are not two-dimensional, of different batch sizes or outside the vocabulary, or the
      encoder has tokens and there is none, or the other way round.
  """
  if (encoder_input_tokens is None) != model_config.is_decoder_only:
    has = 'no encoder: give None as' if model_config.is_decoder_only else 'an encoder: give it'
    raise ConfigError(f'the model has {has} encoder_input_tokens.')
  tokens = {'encoder_input_tokens': encoder_input_tokens, 'decoder_input_tokens': decoder_input_tokens}
  if encoder_input_tokens is None:
    del tokens['encoder_input_tokens']
  for name, value in tokens.items():
    value = tokens[name] = jnp.asarray(value, jnp.int32)
    if value.ndim != 2:
      raise ConfigError(f'{name} has the shape {value.shape}; it must be [batch, length].')
    if value.size and (int(value.min()) < 0 or int(value.max()) >= model_config.vocab_size):
      raise ConfigError(
        f'{name} holds tokens from {int(value.min())} to {int(value.max())}; the model knows 0 to '
        f'{model_config.vocab_size - 1}. Tokenise with the vocabulary that the model was trained on.'
      )
  sizes = [value.shape[0] for value in tokens.values()]
  if sizes[0] != sizes[-1]:
    raise ConfigError(f'the encoder has {sizes[0]} rows and the decoder {sizes[1]}; they must be the same examples.')
  if model_config.prefix_lm:
    tokens['decoder_causal_attention'] = jnp.zeros_like(tokens['decoder_input_tokens'])
  return _forward(model_config)(params, tokens)


@functools.lru_cache(maxsize=8)
def _forward(config: ModelConfig):
  """Returns the compiled forward pass of a model on one device."""
  model = Transformer(config, Layout.single_device())
  return jax.jit(lambda params, batch: model.apply({'params': params}, batch)[0])
