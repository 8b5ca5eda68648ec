"""Switch attention: with one expert it is attention whose keys are its values, in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from switch_jax.config import ModelConfig, MoeConfig
from switch_jax.model.switch_attention import SwitchSelfAttention
from switch_jax.parallel import Layout

CONFIG = ModelConfig(
  vocab_size=8, emb_dim=6, num_heads=2, head_dim=4, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1,
  init_scale=1.0,
  moe=MoeConfig(num_experts=1, encoder_layers=(), decoder_layers=(), encoder_attention_layers=1,
                eval_capacity_factor=None),
)  # fmt: skip
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 5, 6)).astype(np.float32)
BIAS = RANDOM.normal(size=(2, 5, 5)).astype(np.float32)
REAL = np.arange(5) < np.array([5, 3])[:, None]
SEGMENTS = REAL.astype(np.int32)


def attend(config, x, params=None, causal=False):
  module = SwitchSelfAttention(config, Layout.single_device(), deterministic=True, causal=causal)
  arguments = (x, x, (SEGMENTS, SEGMENTS), BIAS, REAL)
  if params is None:
    params = meta.unbox(jax.jit(module.init)(jax.random.key(0), *arguments))
  return params, *jax.jit(module.apply)(params, *arguments)


@pytest.fixture(scope='module')
def one_expert():
  return attend(CONFIG, X)


@pytest.mark.parametrize('causal', [False, True])
def test_one_expert_is_the_formula(one_expert, causal):
  params, found, statistics = one_expert
  if causal:
    found = attend(CONFIG, X, params, causal=True)[1]
  query, key = (X @ params['params'][name]['expert']['w']['kernel'][0] for name in ('query', 'key_value'))
  query, key = (np.asarray(y * REAL[..., None]).reshape(2, 5, 2, 4) for y in (query, key))
  scores = np.einsum('bqhd,bkhd->bhqk', query, key) + BIAS
  allowed = REAL[:, None, None] & (np.tril(np.ones((5, 5), bool)) if causal else True)
  weights = np.exp(np.where(allowed, scores, -np.inf))
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum('bhqk,bkhd->bqhd', weights, key).reshape(2, 5, 8) @ params['params']['out']['kernel']
  np.testing.assert_allclose(found[REAL], expected[REAL], atol=1e-5)
  assert sorted(statistics) == ['attention_key_value', 'attention_query']
  assert [value.tokens.tolist() for value in statistics.values()] == [[8], [8]]


def test_bfloat16_is_computed_in_float32(one_expert):
  params, *_ = one_expert
  x = jnp.asarray(X, jnp.bfloat16)
  low = attend(dataclasses.replace(CONFIG, activation_dtype='bfloat16'), x, params)[1]
  assert low.dtype == jnp.bfloat16
  exact = attend(CONFIG, x.astype(jnp.float32), params)[1]
  np.testing.assert_array_equal(low[REAL], exact.astype(jnp.bfloat16)[REAL])
