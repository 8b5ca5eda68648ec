"""Initial values of the parameters.

`paper` (section 2.4): every matrix is truncated normal with sigma = sqrt(s / fan_in) before truncation at two sigma,
the router included, and the fan-in of an expert is its own. `released` are the distributions with which the released
checkpoints were trained (flaxformer's configuration). In both the query kernel carries the 1 / sqrt(head_dim) that T5
leaves out of the attention scores (Raffel et al. 2020).
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from switch_jax.config import ModelConfig

Initializer = Callable[..., jax.Array]
Kind = Literal['query', 'attention', 'mlp', 'expert', 'router', 'logits']

_ROUTER_STDDEV = 0.02


def truncated_normal(stddev: float) -> Initializer:
  """Returns an initializer of N(0, stddev^2) truncated at two standard deviations, not rescaled afterwards."""

  def init(key, shape, dtype=jnp.float32):
    return stddev * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

  return init


def kernel(config: ModelConfig, kind: Kind) -> Initializer:
  """Returns the initializer of a matrix `[..., fan_in, fan_out]`; leading axes stack experts.

  Args:
    config: gives the scheme `init` and the scale s, `init_scale`.
    kind: what the matrix is for.
  """

  def init(key, shape, dtype=jnp.float32):
    stddev = math.sqrt(config.init_scale / shape[-2])
    if kind == 'query':
      stddev /= math.sqrt(config.head_dim)
    if config.init == 'paper':
      return truncated_normal(stddev)(key, shape, dtype)
    if kind == 'router':
      return _ROUTER_STDDEV * jax.random.normal(key, shape, dtype)
    if kind in ('mlp', 'logits'):
      # Rescaled so that the variance after truncation is s / fan_in, as jax.nn.initializers does.
      return truncated_normal(stddev / 0.87962566103423978)(key, shape, dtype)
    return stddev * jax.random.normal(key, shape, dtype)

  return init


def embedding(config: ModelConfig) -> Initializer:
  """Returns N(0, 1), T5's initializer of the embedding table, whatever the scheme."""
  del config
  return jax.nn.initializers.normal(1.0)


def relative_position_bias(config: ModelConfig) -> Initializer:
  """Returns the uniform fan-average initializer of the relative-position table `[heads, buckets]`."""
  return jax.nn.initializers.variance_scaling(config.init_scale, 'fan_avg', 'uniform')
