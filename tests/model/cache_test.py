"""What is kept of earlier positions, and attention to it."""

import jax.numpy as jnp
import numpy as np

from switch_jax.kernels import MASKED
from switch_jax.model.cache import StepContext, attend_to_cache, attend_to_memory, heads_first, heads_last

RANDOM = np.random.default_rng(0)


def draw(*shape):
  return RANDOM.normal(size=shape).astype(np.float32)


def test_heads_come_first_and_go_back():
  y = draw(2, 5, 12)
  by_head = heads_first(y, 3)
  assert by_head.shape == (2, 3, 5, 4)
  np.testing.assert_array_equal(by_head[1, 2, 3], y[1, 3, 8:])
  np.testing.assert_array_equal(heads_last(by_head), y)


def softmax(x):
  x = np.exp(x - x.max(axis=-1, keepdims=True))
  return x / x.sum(axis=-1, keepdims=True)


def test_attention_to_the_memory_is_the_formula():
  query, key, value, bias = draw(2, 3, 2, 4), draw(2, 3, 5, 4), draw(2, 3, 5, 4), draw(2, 1, 1, 5)
  weights = softmax(np.einsum('rhqk,rhsk->rhqs', query, key) + bias)
  expected = np.einsum('rhqs,rhsk->rhqk', weights, value)
  np.testing.assert_allclose(attend_to_memory(query, (key, value), bias), expected, atol=1e-5)


def test_the_newest_position_is_put_in_its_place_before_it_is_attended_to():
  key, value, new_key, new_value, query = draw(2, 3, 6, 4), draw(2, 3, 6, 4), *(draw(2, 3, 1, 4) for _ in range(3))
  bias = draw(3, 1, 6)
  bias[:, :, 3:] = MASKED
  context = StepContext(jnp.ones((2, 1), bool), jnp.int32(2), bias, jnp.zeros((2, 1, 1, 1)))
  found, kept = attend_to_cache(query, (new_key, new_value), (key, value), context)
  key[:, :, 2:3], value[:, :, 2:3] = new_key, new_value
  np.testing.assert_array_equal(kept[0], key)
  np.testing.assert_array_equal(kept[1], value)
  weights = softmax(np.einsum('rhqk,rhsk->rhqs', query, key[:, :, :3]) + bias[:, :, :3])
  np.testing.assert_allclose(found, np.einsum('rhqs,rhsk->rhqk', weights, value[:, :, :3]), atol=1e-5)


def test_a_cache_keeps_its_dtype_and_the_softmax_is_in_float32():
  half = lambda *shape: jnp.asarray(draw(*shape), jnp.bfloat16)  # noqa: E731
  context = StepContext(jnp.ones((1, 1), bool), jnp.int32(0), jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 1, 1)))
  found, kept = attend_to_cache(
    half(1, 1, 1, 4), (half(1, 1, 1, 4),) * 2, (jnp.zeros((1, 1, 2, 4)), jnp.zeros((1, 1, 2, 4), jnp.bfloat16)), context
  )
  assert [x.dtype for x in (found, *kept)] == [jnp.bfloat16, jnp.float32, jnp.bfloat16]
