"""Rotary positions against complex numbers in NumPy; and what they are for: only distances count."""

import jax.numpy as jnp
import numpy as np

from switch_jax.model.rotary import rotate

WIDTH, BASE = 8, 100.0


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_rotation_is_a_product_of_complex_numbers():
  x, positions = draw(2, 5, 3, WIDTH), np.array([0, 1, 2, 7, 4000])
  wavelengths = BASE ** (2 * np.arange(WIDTH // 2) / WIDTH)
  pairs = x[..., : WIDTH // 2] + 1j * x[..., WIDTH // 2 :]  # the halves, as Llama
  turned = pairs * np.exp(1j * positions[:, None, None] / wavelengths)
  found = rotate(jnp.asarray(x), jnp.asarray(positions)[:, None], BASE)
  np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], axis=-1), atol=2e-3)
  np.testing.assert_allclose(found[:, :4], np.concatenate([turned.real, turned.imag], axis=-1)[:, :4], atol=1e-6)
  np.testing.assert_array_equal(found[:, 0], x[:, 0])
  assert rotate(jnp.asarray(x, jnp.bfloat16), jnp.int32(3), BASE).dtype == jnp.bfloat16


def test_products_know_only_the_distance():
  query, key = draw(WIDTH), draw(WIDTH, seed=1)
  score = lambda at, to: float(rotate(query, jnp.int32(at), BASE) @ rotate(key, jnp.int32(to), BASE))  # noqa: E731
  np.testing.assert_allclose(score(3, 1), score(103, 101), rtol=1e-4)
  assert abs(score(3, 1) - score(3, 2)) > 1e-2
