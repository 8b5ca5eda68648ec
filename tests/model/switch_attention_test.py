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
  return params, *jax.jit(module.apply)(params, *arguments)[:2]


def attention(query, key, params, causal=False):
  """Returns the attention of queries and keys, which are values too, each `[2, 5, 8]`."""
  query, key = (y.reshape(2, 5, 2, 4) for y in (query, key))
  scores = np.einsum('bqhd,bkhd->bhqk', query, key) + BIAS
  allowed = REAL[:, None, None] & (np.tril(np.ones((5, 5), bool)) if causal else True)
  weights = np.exp(np.where(allowed, scores, -np.inf))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('bhqk,bkhd->bqhd', weights, key).reshape(2, 5, 8) @ params['params']['out']['kernel']


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('kind', ['mlp', 'linear'])
def test_one_expert_is_the_formula(kind, causal):
  config = dataclasses.replace(CONFIG, moe=dataclasses.replace(CONFIG.moe, attention_expert=kind))
  params, found, statistics = attend(config, X, causal=causal)
  experts = {name: value['kernel'][0] for name, value in params['params']['query_key_value']['expert'].items()}
  hidden = np.maximum(X @ experts['wi'], 0) if kind == 'mlp' else X
  query, key = (hidden @ experts[name] for name in ('query', 'key_value'))
  expected = attention(*(np.asarray(y * REAL[..., None]) for y in (query, key)), params, causal)
  np.testing.assert_allclose(found[REAL], expected[REAL], atol=1e-5)
  assert {name: value.tokens.tolist() for name, value in statistics.items()} == {'attention': [8]}


def test_one_router_sends_query_key_and_value_to_one_expert():
  """As Mesh TensorFlow's: two outputs of the same hidden units, both times the gate."""
  config = dataclasses.replace(CONFIG, moe=dataclasses.replace(CONFIG.moe, num_experts=3))
  params, found, _ = attend(config, X)
  layer = params['params']['query_key_value']
  assert sorted(layer) == ['expert', 'router']
  assert sorted(layer['expert']) == ['key_value', 'query', 'wi']
  gates = np.asarray(jax.nn.softmax(X @ layer['router']['router_weights']['w']['kernel']))
  query, key = np.zeros((2, 2, 5, 8))
  for row, token in np.argwhere(REAL):
    expert = gates[row, token].argmax()
    hidden = np.maximum(X[row, token] @ layer['expert']['wi']['kernel'][expert], 0) * gates[row, token, expert]
    query[row, token], key[row, token] = (hidden @ layer['expert'][n]['kernel'][expert] for n in ('query', 'key_value'))
  np.testing.assert_allclose(found[REAL], attention(query, key, params)[REAL], atol=1e-5)


def test_bfloat16_is_computed_in_float32():
  params, *_ = attend(CONFIG, X)
  x = jnp.asarray(X, jnp.bfloat16)
  low = attend(dataclasses.replace(CONFIG, activation_dtype='bfloat16'), x, params)[1]
  assert low.dtype == jnp.bfloat16
  exact = attend(CONFIG, x.astype(jnp.float32), params)[1]
  np.testing.assert_array_equal(low[REAL], exact.astype(jnp.bfloat16)[REAL])
