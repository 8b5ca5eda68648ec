"""Products of tokens by kernels, whose derivatives have a form of their own on CPUs.

A kernel's gradient adds up over the tokens, which are the rows of both of its factors. XLA:CPU's fast products add up
over the columns of the first factor only; anything else goes to a slower library, which packs both factors anew, an
allocation for each block, and has to be asked for the gradient transposed and transposed back. So the form for CPUs
lays the first factor's columns out as rows, which costs one pass over it, and adds up over those.
"""

import jax
import jax.numpy as jnp

from switch_jax.kernels.table import forms
from switch_jax.parallel import Layout


def expert_product(layout: Layout, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Multiplies the slots of every expert `[e, c, d]` by its matrix `[e, d, f]`; returns `[e, c, f]`."""
  own_gradient = forms(layout)['expert_product'] == 'own_gradient'
  return product_with_own_gradient(x, kernel) if own_gradient else product(x, kernel)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The plain form."""
  return jnp.einsum('ecd,edf->ecf', x, kernel)


@jax.custom_vjp
def product_with_own_gradient(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The form for XLA:CPU, with its derivative spelt out."""
  return product(x, kernel)


def _backward(residuals, gradient):
  x, kernel = residuals
  return jnp.einsum('ecf,edf->ecd', gradient, kernel), transposed(x) @ gradient


product_with_own_gradient.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), _backward)


def dense_kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """The gradient of a dense kernel in the form for XLA:CPU.

  Args:
    x: what the kernel was multiplied by, `[..., d]`.
    gradient: of the product, `[..., f]` with the same first axes.

  Returns:
    `[d, f]`.
  """
  return transposed(x.reshape(-1, x.shape[-1])) @ gradient.reshape(-1, gradient.shape[-1])


def transposed(x: jax.Array) -> jax.Array:
  """Returns `[..., n, d]` as `[..., d, n]`, laid out so; without the barrier XLA would put it back into the product."""
  return jax.lax.optimization_barrier(x.swapaxes(-1, -2))
