"""The plain layers of T5: kernels, layer norm, embedding, feed-forward network, dropout.

Parameters are float32 and have T5X's names; activations have the configuration's dtype.
"""

import functools
import operator
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from switch_jax.config import ModelConfig
from switch_jax.model import initializers

ACTIVATIONS = {'relu': jax.nn.relu, 'gelu': jax.nn.gelu, 'silu': jax.nn.silu, 'linear': lambda x: x}


def activation_dtype(config: ModelConfig) -> jnp.dtype:
  """Returns the dtype of activations."""
  return jnp.dtype(config.activation_dtype)


def input_kernel_names(config: ModelConfig) -> tuple[str, ...]:
  """Returns T5X's names of a feed-forward network's input kernels: `wi`, or `wi_0` and `wi_1` of a gated one."""
  count = len(config.mlp_activations)
  return ('wi',) if count == 1 else tuple(f'wi_{i}' for i in range(count))


def activate(config: ModelConfig, hidden: Sequence[jax.Array]) -> jax.Array:
  """Returns the product of the activations, one for each input kernel: ReLU, or GEGLU (Shazeer 2020)."""
  activated = [ACTIVATIONS[name](x) for name, x in zip(config.mlp_activations, hidden, strict=True)]
  return functools.reduce(operator.mul, activated)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Multiplies tokens `[batch, length, d]` by a float32 kernel `[d, f]`, in the dtype of the tokens.

  The kernel's gradient is made and summed over the devices in float32, also where the tokens are bfloat16.
  """
  return x @ kernel if x.dtype == kernel.dtype else _mixed_product(x, kernel)


@jax.custom_vjp
def _mixed_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return x @ kernel.astype(x.dtype)


def _mixed_product_backward(kept, gradient):
  x, kernel = kept
  to_kernel = jnp.einsum('bld,blf->df', x, gradient, preferred_element_type=jnp.float32)
  return jnp.einsum('blf,df->bld', gradient, kernel.astype(x.dtype)), to_kernel


_mixed_product.defvjp(lambda x, kernel: (_mixed_product(x, kernel), (x, kernel)), _mixed_product_backward)


class Kernel(nn.Module):
  """A matrix, or a stack of them, that knows the logical names of its axes."""

  shape: tuple[int, ...]
  names: tuple[str | None, ...]
  init: initializers.Initializer

  @nn.compact
  def __call__(self) -> jax.Array:
    """Returns the float32 kernel."""
    return self.param('kernel', nn.with_logical_partitioning(self.init, self.names), self.shape, jnp.float32)


class Dense(nn.Module):
  """A linear map without bias."""

  shape: tuple[int, int]
  names: tuple[str | None, str | None]
  init: initializers.Initializer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., fan_in]` to `[..., fan_out]` in the dtype of `x`."""
    kernel = self.param('kernel', nn.with_logical_partitioning(self.init, self.names), self.shape, jnp.float32)
    return product(x, kernel)


class LayerNorm(nn.Module):
  """T5's layer norm: divides by the root mean square, no mean, no bias, computed in float32."""

  epsilon: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises the last axis of `x` and keeps its dtype."""
    ones = nn.with_logical_partitioning(nn.initializers.ones_init(), (None,))
    scale = self.param('scale', ones, (x.shape[-1],), jnp.float32)
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
    return (y * scale).astype(x.dtype)


class Embed(nn.Module):
  """The token embedding, shared by both stacks and, where tied, by the logits."""

  config: ModelConfig

  def setup(self) -> None:
    config = self.config
    init = nn.with_logical_partitioning(initializers.embedding(config), ('vocab', 'embed'))
    self.embedding = self.param('embedding', init, (config.vocab_size, config.emb_dim), jnp.float32)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Looks up int32 tokens `[batch, length]`; returns `[batch, length, embed]` in the activation dtype."""
    return jnp.take(self.embedding, tokens, axis=0).astype(activation_dtype(self.config))

  def attend(self, x: jax.Array) -> jax.Array:
    """Returns float32 logits `[batch, length, vocab]` of the tied table, scaled by emb_dim ** -0.5."""
    x = x * jnp.asarray(self.config.emb_dim**-0.5, x.dtype)
    return jnp.einsum('bld,vd->blv', x, self.embedding.astype(x.dtype), preferred_element_type=jnp.float32)


class Dropout(nn.Module):
  """Dropout with one mask for all positions of a row, as T5X."""

  rate: float
  deterministic: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Drops entries of `[batch, length, width]`."""
    return nn.Dropout(self.rate, broadcast_dims=(-2,))(x, deterministic=self.deterministic)


class MlpBlock(nn.Module):
  """The dense feed-forward network."""

  config: ModelConfig
  deterministic: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, length, embed]` to the same shape and dtype."""
    config = self.config
    init = initializers.kernel(config, 'mlp')
    inner, outer = (config.emb_dim, config.mlp_dim), (config.mlp_dim, config.emb_dim)
    hidden = [Dense(inner, ('embed', 'mlp'), init, name=name)(x) for name in input_kernel_names(config)]
    y = activate(config, hidden)
    y = Dropout(config.dropout_rate, self.deterministic)(y)
    return Dense(outer, ('mlp', 'embed'), init, name='wo')(y)
