"""The log probability of given targets, and the capacity that a model is used with."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from switch_jax.config import ModelConfig
from switch_jax.inference.decoding import padded_before
from switch_jax.model import Transformer
from switch_jax.parallel import Layout
from switch_jax.parallel.compilation import compiled_by_all


def with_capacity(config: ModelConfig, factor: float | None) -> ModelConfig:
  """Returns the model with an evaluation capacity factor; None drops no token, whatever the batch is."""
  if config.moe is None:
    return config
  moe = dataclasses.replace(config.moe, eval_capacity_factor=factor, expert_capacity=None)
  if factor is None:
    moe = dataclasses.replace(moe, sequences_per_group=None)
  return dataclasses.replace(config, moe=moe)


def _row(inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the tokens of rows that have targets after inputs, and what a model without an encoder needs of them.

  Padding of inputs stands before them, where nothing sees it and the router has no token.
  """
  rows = jnp.concatenate([padded_before(inputs), targets], axis=1)
  segments = (rows > 0).astype(jnp.int32)
  # Of the prefix is what the decoder is given of it, with the start symbol.
  prefix = segments * (jnp.arange(rows.shape[1]) <= inputs.shape[1])
  return rows, {'decoder_segment_ids': segments, 'decoder_causal_attention': prefix}


def score_targets(config: ModelConfig, layout: Layout, params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the sum of the log probabilities of each example's targets, float32 `[batch]`.

  Args:
    config: what is computed; its evaluation capacity holds in both stacks.
    layout: where.
    params: nested dict of arrays.
    inputs: int32 `[batch, inputs length]`, one example a row, 0 for padding after it; only zeros score a text alone.
    targets: int32 `[batch, targets length]`, 0 after the end; zeros count nothing.
  """
  rows, batch = _row(inputs, targets) if config.is_decoder_only else (targets, {'encoder_input_tokens': inputs})
  batch |= {'decoder_input_tokens': jnp.pad(rows, ((0, 0), (1, 0)))[:, :-1]}
  logits, _ = Transformer(config, layout).apply({'params': params}, batch)
  logits = logits[:, -targets.shape[1] :]
  each = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
  return jnp.sum(jnp.where(targets > 0, each, 0.0), axis=-1)


@functools.lru_cache(maxsize=16)
def make_score(config: ModelConfig, layout: Layout) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
  """Returns the jitted `(params, inputs, targets) -> log probabilities`; the result is on every device."""
  jitted = jax.jit(functools.partial(score_targets, config, layout), out_shardings=layout.replicated())
  return compiled_by_all(jitted, 'scores')
