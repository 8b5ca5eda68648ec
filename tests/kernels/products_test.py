"""Products and their derivatives: both forms agree; a TPU gets nothing that was shaped for a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax import config, kernels
from switch_jax.kernels import products
from switch_jax.model.layers import product as dense_product
from switch_jax.parallel import Layout

MODEL = config.ModelConfig(
  vocab_size=8, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)


def test_the_forms_and_their_gradients_are_equal():
  x, kernel = jax.random.normal(jax.random.key(0), (3, 5, 4)), jax.random.normal(jax.random.key(1), (3, 4, 6))
  found, expected = (
    jax.value_and_grad(lambda *a, f=form: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1))(x, kernel)
    for form in (products.product_with_own_gradient, products.product)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize('axes', ['df', 'fd'])
@pytest.mark.parametrize(('d', 'f'), [(3, 40), (40, 3), (8, 8)])
def test_a_dense_product_and_its_gradients_are_equal(axes, d, f):
  x = jax.random.normal(jax.random.key(0), (2, 5, d))
  kernel = jax.random.normal(jax.random.key(1), (d, f) if axes == 'df' else (f, d))
  single = Layout.single_device()
  plain = Layout(single.mesh, kernels=(('dense_product', 'plain'),))

  def value(layout):
    return jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(dense_product(*a, MODEL, layout, axes))), argnums=(0, 1))

  assert 'optimization_barrier' in str(jax.make_jaxpr(value(single))(x, kernel))
  assert 'optimization_barrier' not in str(jax.make_jaxpr(value(plain))(x, kernel))
  found, expected = value(single)(x, kernel), value(plain)(x, kernel)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize(('left', 'right', 'transposes'), [(64, 256, 1), (256, 64, 2)])
def test_the_narrower_factor_is_transposed(left, right, transposes):
  x, y = jax.random.normal(jax.random.key(0), (512, left)), jax.random.normal(jax.random.key(1), (512, right))
  assert str(jax.make_jaxpr(products.sum_over_rows)(x, y)).count('optimization_barrier') == transposes
  np.testing.assert_allclose(products.sum_over_rows(x, y), x.T @ y, rtol=1e-4, atol=1e-4)


def test_the_layout_chooses():
  single = Layout.single_device()
  x, kernel = jnp.ones((1, 2, 3)), jnp.ones((1, 3, 2))
  text = lambda layout: str(jax.make_jaxpr(lambda x, k: kernels.expert_product(layout, x, k))(x, kernel))  # noqa: E731
  assert 'custom_vjp' in text(single)
  assert 'custom_vjp' not in text(Layout(single.mesh, kernels=(('expert_product', 'plain'),)))
