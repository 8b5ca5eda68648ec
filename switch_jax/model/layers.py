"""The plain layers of T5: kernels, layer norm, embedding, feed-forward network, dropout.

Parameters are float32 and have T5X's names; activations have the configuration's dtype.
"""

import functools
import operator
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from switch_jax import kernels
from switch_jax.config import ModelConfig
from switch_jax.model import initializers
from switch_jax.parallel import Layout


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
  """The larger of x and 0; its gradient looks at the result, which the next product keeps anyway, and not at x."""
  return jnp.maximum(x, 0)


relu.defvjp(lambda x: (relu(x),) * 2, lambda y, gradient: (jnp.where(y > 0, gradient, 0),))

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'relu': relu,
  'gelu': jax.nn.gelu,
  'silu': jax.nn.silu,
  'linear': lambda x: x,
}


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


def product(
  x: jax.Array,
  kernel: jax.Array,
  config: ModelConfig,
  layout: Layout,
  axes: str = 'df',
  dtype: jnp.dtype | None = None,
) -> jax.Array:
  """Multiplies tokens by a kernel, in the dtype of the tokens.

  Args:
    x: `[batch, length, d]`.
    kernel: float32, of the two axes that follow.
    config: `gradient_dtype` is that in which the kernel's gradient is made, and summed over the devices.
    layout: its devices have the form of the gradient.
    axes: the kernel's, `df` or `fd`.
    dtype: of the result; None is that of the tokens.

  Returns:
    `[batch, length, f]`.
  """
  is_mixed = x.dtype != kernel.dtype and config.gradient_dtype != x.dtype
  for_cpu = x.dtype == kernel.dtype and kernels.forms(layout)['dense_product'] == 'own_gradient'
  if not (is_mixed or for_cpu):
    return _product(axes, dtype, x, kernel)
  # A derivative of our own hides the product from remat's policies: they know it by this name.
  return checkpoint_name(_product_with_own_gradient(axes, dtype, for_cpu, x, kernel), 'product')


def _product(axes: str, dtype: jnp.dtype | None, x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jnp.einsum(f'bld,{axes}->blf', x, kernel.astype(x.dtype), preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product_with_own_gradient(
  axes: str, dtype: jnp.dtype | None, for_cpu: bool, x: jax.Array, kernel: jax.Array
) -> jax.Array:
  return _product(axes, dtype, x, kernel)


def _product_backward(axes, dtype, for_cpu, kept, gradient):
  del dtype
  x, kernel = kept
  to_x = jnp.einsum(f'blf,{axes}->bld', gradient, kernel.astype(x.dtype)).astype(x.dtype)
  if for_cpu:
    return to_x, kernels.dense_kernel_gradient(*((x, gradient) if axes == 'df' else (gradient, x)))
  return to_x, jnp.einsum(f'bld,blf->{axes}', x, gradient, preferred_element_type=kernel.dtype)


_product_with_own_gradient.defvjp(
  lambda axes, dtype, for_cpu, x, kernel: (_product(axes, dtype, x, kernel), (x, kernel)), _product_backward
)


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

  config: ModelConfig
  layout: Layout
  shape: tuple[int, int]
  names: tuple[str | None, str | None]
  init: initializers.Initializer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[..., fan_in]` to `[..., fan_out]` in the dtype of `x`."""
    kernel = self.param('kernel', nn.with_logical_partitioning(self.init, self.names), self.shape, jnp.float32)
    return product(x, kernel, self.config, self.layout)


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
  layout: Layout

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
    return product(x, self.embedding, self.config, self.layout, 'fd', jnp.dtype('float32'))


class Dropout(nn.Module):
  """Dropout with one mask for all positions of a row, as T5X."""

  rate: float
  deterministic: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Drops entries of `[batch, length, width]`."""
    return nn.Dropout(self.rate, broadcast_dims=(-2,))(x, deterministic=self.deterministic)


class MlpBlock(nn.Module):
  """The dense feed-forward network, of the width `mlp_dim`; None is the configuration's."""

  config: ModelConfig
  layout: Layout
  deterministic: bool
  mlp_dim: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, length, embed]` to the same shape and dtype."""
    config = self.config
    init = initializers.kernel(config, 'mlp')
    inner = (config.emb_dim, self.mlp_dim or config.mlp_dim)
    dense = functools.partial(Dense, config, self.layout)
    hidden = [dense(inner, ('embed', 'mlp'), init, name=name)(x) for name in input_kernel_names(config)]
    y = activate(config, hidden)
    y = Dropout(config.dropout_rate, self.deterministic)(y)
    return dense(inner[::-1], ('mlp', 'embed'), init, name='wo')(y)
