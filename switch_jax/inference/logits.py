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
  decoder_causal_attention: jax.Array | None = None,
) -> jax.Array:
  """Returns float32 logits `[batch, targets length, vocab]` on one device, with the evaluation capacity.

  Args:
    model_config: what is computed; its evaluation capacity is used as it is.
    params: nested dict of float32 arrays under T5X's names.
    encoder_input_tokens: int `[batch, inputs length]`, one example a row; 0 is padding. None for a decoder-only model.
    decoder_input_tokens: int `[batch, targets length]`, the targets shifted right by the start symbol 0.
    decoder_causal_attention: int `[batch, targets length]`, 1 for the prefix of a row; for prefix LMs alone.

  Raises:
    ConfigError: the arrays are not those that the model takes, not two-dimensional, of different batch sizes, or
      outside the vocabulary.
  """
  tokens = {'decoder_input_tokens': decoder_input_tokens}
  for name, value, is_needed in (
    ('encoder_input_tokens', encoder_input_tokens, not model_config.is_decoder_only),
    ('decoder_causal_attention', decoder_causal_attention, model_config.prefix_lm),
  ):
    if (value is not None) != is_needed:
      kind = 'no encoder' if model_config.is_decoder_only else 'an encoder'
      raise ConfigError(
        f'{name} is {"None" if value is None else "given"}, and the model has {kind} and '
        f'prefix_lm={model_config.prefix_lm}; {"give it" if is_needed else "leave it None"}.'
      )
    if value is not None:
      tokens[name] = value
  for name, value in tokens.items():
    value = tokens[name] = jnp.asarray(value, jnp.int32)
    if value.ndim != 2:
      raise ConfigError(f'{name} has the shape {value.shape}; it must be [batch, length].')
    if value.size and (int(value.min()) < 0 or int(value.max()) >= model_config.vocab_size):
      raise ConfigError(
        f'{name} holds tokens from {int(value.min())} to {int(value.max())}; the model knows 0 to '
        f'{model_config.vocab_size - 1}. Tokenise with the vocabulary that the model was trained on.'
      )
  decoder, *other = (value.shape[0] for value in tokens.values())
  if other and other != [decoder]:
    what = 'prefix' if model_config.is_decoder_only else 'encoder'
    raise ConfigError(f'the {what} has {other[0]} rows and the decoder {decoder}; they must be the same examples.')
  return _forward(model_config)(params, tokens)


@functools.lru_cache(maxsize=8)
def _forward(config: ModelConfig):
  """Returns the compiled forward pass of a model on one device."""
  model = Transformer(config, Layout.single_device())
  return jax.jit(lambda params, batch: model.apply({'params': params}, batch)[0])
