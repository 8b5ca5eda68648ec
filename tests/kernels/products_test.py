"""The experts' product: both forms and their derivatives; a TPU gets nothing that was shaped for a CPU."""

import jax
import jax.numpy as jnp
import numpy as np

from switch_jax import kernels
from switch_jax.kernels.expert_product import product, product_with_own_gradient
from switch_jax.parallel import Layout


def test_the_forms_and_their_gradients_are_equal():
  x, kernel = jax.random.normal(jax.random.key(0), (3, 5, 4)), jax.random.normal(jax.random.key(1), (3, 4, 6))
  found, expected = (
    jax.value_and_grad(lambda *a, f=form: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1))(x, kernel)
    for form in (product_with_own_gradient, product)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_the_layout_chooses():
  single = Layout.single_device()
  x, kernel = jnp.ones((1, 2, 3)), jnp.ones((1, 3, 2))
  text = lambda layout: str(jax.make_jaxpr(lambda x, k: kernels.expert_product(layout, x, k))(x, kernel))  # noqa: E731
  assert 'custom_vjp' in text(single)
  assert 'custom_vjp' not in text(Layout(single.mesh, kernels=(('expert_product', 'plain'),)))
