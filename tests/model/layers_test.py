"""The plain layers against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from switch_jax.config import ModelConfig
from switch_jax.model import transformer
from switch_jax.model.layers import (
  Dropout,
  Embed,
  LayerNorm,
  MlpBlock,
  activate,
  activation_dtype,
  input_kernel_names,
  product,
  relu,
)
from switch_jax.parallel import Layout

LAYOUT = Layout.single_device()
CONFIG = ModelConfig(
  vocab_size=10, emb_dim=4, num_heads=2, head_dim=2, mlp_dim=6, num_encoder_layers=1, num_decoder_layers=1,
  init_scale=1.0,
)  # fmt: skip
GEGLU = dataclasses.replace(CONFIG, mlp_activations=('gelu', 'linear'))
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)


def gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def initialised(module, *arguments, **options):
  return meta.unbox(module.init(jax.random.key(0), *arguments, **options))


def test_layer_norm_divides_by_the_root_mean_square():
  module, scale = LayerNorm(epsilon=0.5), np.array([1.0, 2.0, 3.0, 4.0], np.float32)
  found = module.apply({'params': {'scale': scale}}, X)
  np.testing.assert_allclose(found, X / np.sqrt(np.mean(X**2, axis=-1, keepdims=True) + 0.5) * scale, rtol=1e-5)
  assert initialised(module, X)['params']['scale'].tolist() == [1.0] * 4


def test_layer_norm_computes_in_float32_and_keeps_the_dtype():
  x = jnp.asarray(X * 300, jnp.bfloat16)
  found = LayerNorm(epsilon=1e-6).apply({'params': {'scale': np.ones(4, np.float32)}}, x)
  exact = np.asarray(x, np.float32)
  exact = exact / np.sqrt(np.mean(exact**2, axis=-1, keepdims=True) + 1e-6)
  np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_embedding_looks_up_and_gives_logits(dtype):
  config = dataclasses.replace(CONFIG, activation_dtype=dtype)
  module, tokens = Embed(config, LAYOUT), np.array([[3, 0, 9]], np.int32)
  params = initialised(module, tokens)
  table = params['params']['embedding']
  found = module.apply(params, tokens)
  assert found.dtype == activation_dtype(config) == dtype
  np.testing.assert_array_equal(found, table[tokens].astype(dtype))
  logits = module.apply(params, found, method='attend')
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, table[tokens] @ table.T / 2, atol=0.05 if dtype == 'bfloat16' else 1e-5)


def test_activations_are_multiplied():
  assert input_kernel_names(CONFIG) == ('wi',)
  assert input_kernel_names(GEGLU) == ('wi_0', 'wi_1')
  np.testing.assert_array_equal(activate(CONFIG, [X]), np.maximum(X, 0))
  np.testing.assert_allclose(activate(GEGLU, [X, 3 * X]), gelu(X) * 3 * X, atol=1e-5)


@pytest.mark.parametrize('config', [CONFIG, GEGLU], ids=['relu', 'geglu'])
def test_feed_forward_network(config):
  module = MlpBlock(config, LAYOUT, deterministic=True)
  params = initialised(module, X)
  kernels = {name: np.asarray(leaf['kernel']) for name, leaf in params['params'].items()}
  hidden = np.maximum(X @ kernels['wi'], 0) if config is CONFIG else gelu(X @ kernels['wi_0']) * (X @ kernels['wi_1'])
  np.testing.assert_allclose(module.apply(params, X), hidden @ kernels['wo'], atol=1e-5)


def test_dropout_has_one_mask_for_all_positions_of_a_row():
  ones = np.ones((4, 3, 100), np.float32)
  found = np.asarray(Dropout(0.5, deterministic=False).apply({}, ones, rngs={'dropout': jax.random.key(0)}))
  np.testing.assert_array_equal(np.unique(found), [0, 2])
  np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1], found.shape))
  assert not np.array_equal(found[0], found[1])
  np.testing.assert_array_equal(Dropout(0.5, deterministic=True).apply({}, ones), ones)


def test_relu_has_the_derivative_of_jax():
  x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0, jnp.nan], jnp.float32)
  np.testing.assert_array_equal(relu(x), jax.nn.relu(x))
  of = lambda f: jax.vjp(f, x)[1](jnp.arange(1.0, 7.0))[0]  # noqa: E731
  np.testing.assert_array_equal(of(relu), of(jax.nn.relu))


@pytest.mark.parametrize(('axes', 'dtype'), [('df', None), ('fd', jnp.dtype('float32'))])
@pytest.mark.parametrize('gradient_dtype', ['float32', 'bfloat16'])
def test_a_kernels_gradient_is_made_in_the_dtype_asked_for(axes, dtype, gradient_dtype):
  """Of bfloat16 tokens: exact to float32, or rounded."""
  config = dataclasses.replace(CONFIG, gradient_dtype=gradient_dtype)
  random = np.random.default_rng(1)
  x = jnp.asarray(random.normal(size=(2, 3, 4)), jnp.bfloat16)
  kernel = jnp.asarray(random.normal(size=(4, 6) if axes == 'df' else (6, 4)), jnp.float32)
  y, backward = jax.vjp(lambda x, kernel: product(x, kernel, config, LAYOUT, axes, dtype), x, kernel)
  rounded = np.asarray(kernel.astype(jnp.bfloat16), np.float64)
  rounded = rounded if axes == 'df' else rounded.T
  wide = lambda x: np.asarray(x, np.float64)  # noqa: E731
  assert y.dtype == (dtype or jnp.bfloat16)
  np.testing.assert_allclose(wide(y), wide(x) @ rounded, rtol=1e-6 if dtype else 1e-2, atol=1e-2)
  gradient = jnp.asarray(random.normal(size=(2, 3, 6)), jnp.bfloat16)
  to_x, to_kernel = backward(gradient.astype(y.dtype))
  assert (to_x.dtype, to_kernel.dtype) == (jnp.bfloat16, jnp.float32)
  np.testing.assert_allclose(wide(to_x), wide(gradient) @ rounded.T, rtol=1e-2, atol=2e-2)
  exact = np.einsum('bld,blf->df', wide(x), wide(gradient))
  error = np.abs(wide(to_kernel) - (exact if axes == 'df' else exact.T)).max()
  assert error < 1e-5 if gradient_dtype == 'float32' else 1e-4 < error < 0.1


def test_remat_keeps_the_products_of_mixed_dtypes():
  """Two products forwards and four backwards, none again."""
  x, first, second = jnp.ones((2, 3, 4), jnp.bfloat16), jnp.ones((4, 6)), jnp.ones((6, 4))
  policies = jax.checkpoint_policies

  def count(*kept):
    kept = jax.checkpoint(loss, policy=policies.save_only_these_names(*kept))
    return str(jax.make_jaxpr(jax.grad(kept, argnums=(0, 1)))(first, second)).count('dot_general[')

  def loss(first, second):
    y = product(jnp.sin(product(x, first, CONFIG, LAYOUT)), second, CONFIG, LAYOUT)
    return jnp.sum(jnp.sin(y.astype(jnp.float32)))

  assert (count(*transformer._KEPT), count()) == (6, 8)
