"""Routers of today's models against loops in NumPy: who is kept, slots, gates, statistics and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from switch_jax.config import MoeConfig
from switch_jax.kernels.decisions import BY_PRODUCTS, SORTED
from switch_jax.model import losses
from switch_jax.model.routing import route

GROUPS, TOKENS, EXPERTS, CAPACITY = 2, 6, 4, 3
WEIGHTS = np.random.default_rng(0).normal(size=(GROUPS, TOKENS, EXPERTS))
CASES = {
  'mixtral': dict(router='topk'),
  'olmoe': dict(router='topk', num_selected_experts=3, normalize_gates=False),
  'deepseek': dict(router='topk', num_selected_experts=3, router_scores='sigmoid', gate_scale=2.5, with_bias=True),
  'all experts': dict(router='topk', num_selected_experts=EXPERTS, with_bias=True),
  'llama': dict(router='top1', router_scores='sigmoid'),
  'top1 with biases': dict(router='top1', with_bias=True),
}


def scores_of(logits, config):
  return 1 / (1 + np.exp(-logits)) if config.router_scores == 'sigmoid' else shares(np.exp(logits))


def shares(values):
  return values / values.sum(-1, keepdims=True)


def decide(logits, bias, real, config):
  """Returns experts and slots `[g, s, k]`, -1 for none."""
  wanted = logits if bias is None else scores_of(logits, config) + bias
  k = config.num_selected_experts if config.router == 'topk' else 1
  expert = np.argsort(-wanted, axis=-1, kind='stable')[..., :k]
  slot = np.full(expert.shape, -1)
  for group in range(GROUPS):
    taken = np.zeros(EXPERTS, int)
    for choice in range(k):
      for token in np.flatnonzero(real[group]):
        mine = expert[group, token, choice]
        if taken[mine] < CAPACITY:
          slot[group, token, choice] = taken[mine]
          taken[mine] += 1
  return expert, slot


def loss_of(logits, expert, slot, real, config):
  """Returns what the gradient is taken of, one for each leading index of the logits `[..., g, s, e]`, and the gates."""
  scores = scores_of(logits, config)
  gate = np.take_along_axis(scores, np.broadcast_to(expert, (*scores.shape[:-1], expert.shape[-1])), axis=-1)
  if config.router == 'topk':
    gate = config.gate_scale * (shares(gate) if config.normalize_gates else gate)
  gate = np.where(slot >= 0, gate, 0)
  counts = np.zeros((GROUPS, EXPERTS))
  for group, token in zip(*np.nonzero(real), strict=True):
    counts[group, expert[group, token]] += 1
  tokens = np.maximum(real.sum(1), 1)[:, None]
  probability = (shares(scores) * real[..., None]).sum(-2) / tokens
  balance = EXPERTS * (counts / tokens / expert.shape[-1] * probability).sum(-1)
  squared = np.log(np.exp(logits).sum(-1)) ** 2 * real
  total = (gate * WEIGHTS[..., : expert.shape[-1]]).sum((-1, -2, -3)) + balance.sum(-1) + squared.sum((-1, -2))
  return total, gate, counts


@functools.cache
def compiled(case):
  fields = dict(CASES[case])
  has_bias = fields.pop('with_bias', False)
  if has_bias:
    fields |= dict(bias_update_rate=1e-3, aux_loss_factor=0.0)
  config = MoeConfig(num_experts=EXPERTS, **fields)
  decisions = BY_PRODUCTS if case == 'deepseek' else SORTED

  def loss(logits, bias, real):
    routing, sums = route(
      logits, real, config, CAPACITY, deterministic=True, bias=bias if has_bias else None, decisions=decisions
    )
    gates = jnp.sum(routing.gate * WEIGHTS[..., : routing.gate.shape[-1]])
    return gates + losses.balance_loss_sum(sums) + jnp.sum(sums.squared_log_partition), (routing, sums)

  return config, has_bias, jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize('case', CASES)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_equals_loops(case, data):
  config, has_bias, function = compiled(case)
  # Few values make many ties, full experts and empty ones.
  values = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0])
  logits = data.draw(hnp.arrays(np.float32, (GROUPS, TOKENS, EXPERTS), elements=values))
  bias = data.draw(hnp.arrays(np.float32, EXPERTS, elements=st.sampled_from([-0.5, 0.0, 0.0, 0.3])))
  real = data.draw(hnp.arrays(bool, (GROUPS, TOKENS)))
  (to_logits, to_bias), (routing, sums) = function(logits, bias, real)

  exact = logits.astype(np.float64)
  expert, slot = decide(exact, bias if has_bias else None, real, config)
  _, gate, counts = loss_of(exact, expert, slot, real, config)
  np.testing.assert_array_equal(routing.expert, expert)
  np.testing.assert_array_equal(routing.slot, slot)
  np.testing.assert_allclose(routing.gate, gate, rtol=1e-5)
  np.testing.assert_array_equal(sums.expert_tokens, counts)
  np.testing.assert_allclose(sums.balanced_tokens.sum(1), real.sum(1), rtol=1e-6)
  np.testing.assert_allclose(sums.dropped, (real * (slot < 0).mean(-1)).sum(1), rtol=1e-6)
  probabilities = shares(scores_of(exact, config))
  entropy = -(probabilities * np.log(probabilities)).sum(-1) * real
  np.testing.assert_allclose(sums.entropy, entropy.sum(1), rtol=1e-4, atol=1e-5)

  # A step into the imaginary has the derivative in the imaginary part, to all digits.
  steps = 1e-30j * np.eye(exact.size).reshape(exact.size, *exact.shape)
  expected = loss_of(exact + steps, expert, slot, real, config)[0].imag / 1e-30
  np.testing.assert_allclose(to_logits, expected.reshape(exact.shape), rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(to_bias, 0)
