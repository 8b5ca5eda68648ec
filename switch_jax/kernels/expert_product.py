"""The product of every expert's slots by its own matrix."""

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
  """The form for XLA:CPU, with its derivative spelt out.

  JAX's own computes a kernel's gradient transposed and transposes it afterwards, which XLA:CPU does in memory: a tenth
  of a step with many experts.
  """
  return product(x, kernel)


def _backward(residuals, gradient):
  x, kernel = residuals
  return jnp.einsum('ecf,edf->ecd', gradient, kernel), jnp.einsum('ecd,ecf->edf', x, gradient)


product_with_own_gradient.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), _backward)
