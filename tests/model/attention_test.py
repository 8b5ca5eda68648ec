"""Attention: buckets and the layout of their bias, and the module against NumPy."""

import math

import jax
import numpy as np
import pytest
from flax.linen import meta

from switch_jax.config import ModelConfig
from switch_jax.model.attention import (
  MultiHeadAttention,
  RelativePositionBias,
  bucket_edges,
  by_offset,
  draw_keep,
  relative_position_bucket,
)
from switch_jax.parallel import Layout

CONFIG = ModelConfig(
  vocab_size=8, emb_dim=6, num_heads=2, head_dim=4, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1,
  init_scale=1.0, relpos_num_buckets=8, relpos_max_distance=16,
)  # fmt: skip
LAYOUT = Layout.single_device()
RANDOM = np.random.default_rng(0)


def bucket(offset, bidirectional, num_buckets, max_distance):
  """Returns T5's bucket of key - query, written out for one number."""
  first = 0
  if bidirectional:
    num_buckets //= 2
    first = num_buckets if offset > 0 else 0
    distance = abs(offset)
  else:
    distance = max(-offset, 0)
  exact = num_buckets // 2
  if distance < exact:
    return first + distance
  steps = math.log(distance / exact) / math.log(max_distance / exact) * (num_buckets - exact)
  return first + min(exact + int(steps + 1e-6), num_buckets - 1)


SIZES = [(32, 128), (8, 20), (4, 3), (6, 4), (20, 100), (64, 256), (32, 17), (128, 10_000), (32, 10**9)]


def bucket_of_t5x(offset, bidirectional, num_buckets, max_distance):
  """T5X's formula, on the host in float32 as there."""
  first, distance = 0, np.maximum(-offset, 0)
  if bidirectional:
    num_buckets //= 2
    first, distance = num_buckets * (offset > 0), np.abs(offset)
  exact = num_buckets // 2
  ratio = np.log(distance.astype(np.float32) / exact + np.finfo(np.float32).eps) / np.log(max_distance / exact)
  far = np.minimum(exact + (ratio * (num_buckets - exact)).astype(np.int32), num_buckets - 1)
  return first + np.where(distance < exact, distance, far)


@pytest.mark.parametrize('bidirectional', [True, False])
@pytest.mark.parametrize(('num_buckets', 'max_distance'), SIZES)
def test_buckets(bidirectional, num_buckets, max_distance):
  """Those of T5X, at lengths of millions too; the small ones by the formula in words as well."""
  how = dict(bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance)
  offsets = np.concatenate([np.arange(-20_000, 20_001), 99_991 * np.arange(-9999, 10_000)]).astype(np.int32)
  found = jax.jit(lambda x: relative_position_bucket(x, **how))(offsets)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, bucket_of_t5x(offsets, **how))
  offsets = np.array([*range(-40, 41), -127, -128, -500, 127, 128, 500])
  found = relative_position_bucket(offsets, **how)
  np.testing.assert_array_equal(found, [bucket(o, bidirectional, num_buckets, max_distance) for o in offsets.tolist()])


def test_distances_on_an_edge_belong_to_the_bucket_that_begins_there():
  assert bucket_edges(16, 128) == (12, 16, 23, 32, 46, 64, 91)
  found = relative_position_bucket(
    -np.array([15, 16, 31, 32, 63, 64]), bidirectional=True, num_buckets=32, max_distance=128
  )
  assert found.tolist() == [9, 10, 11, 12, 13, 14]


def test_no_logarithm_decides_on_the_device():
  text = str(
    jax.make_jaxpr(lambda p: RelativePositionBias(CONFIG, True).init_with_output(jax.random.key(0), 4, 6, p)[0])(3)
  )
  assert ' log ' not in text
  assert ' pow ' not in text


def test_values_by_offset_are_laid_out_as_a_matrix():
  queries, keys = 3, 5
  values = RANDOM.normal(size=(2, queries + keys - 1)).astype(np.float32)
  found = by_offset(values, queries, keys)
  for q in range(queries):
    for k in range(keys):
      np.testing.assert_array_equal(found[:, q, k], values[:, k - q + queries - 1])


def test_bias_of_a_later_query_is_its_row():
  module = RelativePositionBias(CONFIG, bidirectional=False)
  params = meta.unbox(module.init(jax.random.key(0), 6, 6))
  whole, row = module.apply(params, 6, 6), module.apply(params, 1, 6, 4)
  np.testing.assert_array_equal(row[:, 0], whole[:, 4])
  table = params['params']['rel_embedding']
  np.testing.assert_allclose(whole[:, 5, 2], table[:, bucket(-3, False, 8, 16)], rtol=1e-6)


def softmax(x):
  x = np.exp(x - x.max(axis=-1, keepdims=True))
  return x / x.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize('causal', [False, True])
def test_attention_is_the_formula(causal):
  """Two packed examples in a row; the scores are not divided by sqrt(head_dim)."""
  module = MultiHeadAttention(CONFIG, LAYOUT, deterministic=True, causal=causal)
  x = RANDOM.normal(size=(1, 5, 6)).astype(np.float32)
  bias = RANDOM.normal(size=(2, 5, 5)).astype(np.float32)
  segments = np.array([[1, 1, 2, 2, 2]], np.int32)
  params = meta.unbox(module.init(jax.random.key(0), x, x, (segments, segments), bias))
  found, statistics, _ = module.apply(params, x, x, (segments, segments), bias)
  kernels = {name: np.asarray(leaf['kernel'], np.float64) for name, leaf in params['params'].items()}
  query, key, value = ((x[0] @ kernels[name]).reshape(5, 2, 4) for name in ('query', 'key', 'value'))
  allowed = segments[0][:, None] == segments[0][None]
  if causal:
    allowed &= np.tril(np.ones((5, 5), bool))
  scores = np.where(allowed, np.einsum('qhd,khd->hqk', query, key) + bias, -np.inf)
  expected = np.einsum('hqk,khd->qhd', softmax(scores), value).reshape(5, 8) @ kernels['out']
  np.testing.assert_allclose(found[0], expected, atol=1e-5)
  assert statistics == {}
  # The same as attention to a memory that happens to be the row itself.
  np.testing.assert_allclose(module.apply(params, x, x.copy(), (segments, segments), bias)[0], found, atol=1e-5)


class _Module:
  deterministic = False

  def make_rng(self, name):
    assert name == 'dropout'
    return jax.random.key(0)


def test_dropout_factors_keep_the_mean():
  module, config = _Module(), ModelConfig(**{**CONFIG.to_json(), 'dropout_rate': 0.25, 'mlp_activations': ('relu',)})
  keep = np.asarray(draw_keep(module, config, 50, 40))
  assert keep.shape == (50, 2, 40)
  np.testing.assert_allclose(np.unique(keep), [0, 1 / 0.75])
  np.testing.assert_allclose(keep.mean(), 1.0, atol=0.05)
  assert draw_keep(module, CONFIG, 50, 40) is None
  module.deterministic = True
  assert draw_keep(module, config, 50, 40) is None
