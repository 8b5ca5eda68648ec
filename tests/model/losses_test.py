"""Sums of losses against NumPy, and that parts add up to the whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.config import LossConfig, ModelConfig, MoeConfig
from switch_jax.model import losses
from switch_jax.model.losses import RouterCounts, RouterSums
from switch_jax.model.routing import RoutingStatistics, route

ROWS, LENGTH, VOCAB, GROUPS, EXPERTS = 4, 5, 7, 4, 3
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(ROWS, LENGTH, VOCAB)).astype(np.float32)
TARGETS = RANDOM.integers(0, VOCAB, (ROWS, LENGTH), dtype=np.int32)
WEIGHTS = (RANDOM.random((ROWS, LENGTH)) < 0.7).astype(np.int32)
PARTITION = np.log(np.exp(LOGITS.astype(np.float64)).sum(-1))
ROUTE = jax.jit(route, static_argnames=('config', 'capacity', 'deterministic'))
NATS = PARTITION - np.take_along_axis(LOGITS, TARGETS[..., None], -1)[..., 0]


def test_sums_over_tokens():
  found = losses.token_sums(LOGITS, TARGETS, WEIGHTS, LossConfig(z_loss=0.1), (2, 5))
  text = WEIGHTS * ~np.isin(TARGETS, (2, 5))
  assert 0 < text.sum() < WEIGHTS.sum() < WEIGHTS.size
  assert found.tokens == WEIGHTS.sum()
  assert found.text_tokens == text.sum()
  assert found.correct == (WEIGHTS * (LOGITS.argmax(-1) == TARGETS)).sum()
  np.testing.assert_allclose(found.cross_entropy, (WEIGHTS * NATS).sum(), rtol=1e-5)
  np.testing.assert_allclose(found.text_cross_entropy, (text * NATS).sum(), rtol=1e-5)
  np.testing.assert_allclose(found.z_loss, 0.1 * (WEIGHTS * PARTITION**2).sum(), rtol=1e-5)


def test_label_smoothing_of_a_perfect_prediction_is_zero():
  smoothed = np.full((1, 1, VOCAB), 0.1 / (VOCAB - 1))
  smoothed[0, 0, 2] = 0.9
  config = LossConfig(label_smoothing=0.1)
  found = losses.token_sums(jnp.log(smoothed), jnp.array([[2]]), jnp.ones((1, 1)), config)
  np.testing.assert_allclose(found.cross_entropy, 0.0, atol=1e-6)
  worse = losses.token_sums(jnp.log(smoothed), jnp.array([[3]]), jnp.ones((1, 1)), config)
  gap = (0.9 - 0.1 / (VOCAB - 1)) * np.log(0.9 / (0.1 / (VOCAB - 1)))
  np.testing.assert_allclose(worse.cross_entropy, gap, rtol=1e-5)


def test_sums_by_group_leave_out_what_belongs_to_none():
  ids = RANDOM.integers(0, 4, (ROWS, LENGTH), dtype=np.int32)
  found = losses.group_sums(LOGITS, TARGETS, WEIGHTS, ids, 3)
  for group in (1, 2, 3):
    members = WEIGHTS * (ids == group)
    assert found['tokens'][group - 1] == members.sum()
    np.testing.assert_allclose(found['cross_entropy'][group - 1], (members * NATS).sum(), rtol=1e-5)


def test_targets_that_are_right_from_end_to_end():
  segments = np.array([[1, 1, 2, 3, 3, 0], [1, 1, 1, 1, 1, 1]])
  positions = np.array([[0, 1, 0, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
  targets = np.array([[4, 1, 1, 3, 1, 0], [2, 3, 4, 3, 2, 1]])
  found = targets.copy()
  for place, right in (((0, 3), 3), ((0, 5), 3), ((1, 5), 2), ((1, 0), 2), ((0, 1), 1)):  # padding does not count
    found[place] = 5
    sums = losses.example_sums(jax.nn.one_hot(found, 6), jnp.asarray(targets), segments, positions)
    assert (float(sums['count']), float(sums['right'])) == (4, right)


def test_inputs_in_the_row_of_a_target_may_be_wrong():
  """Two segments: three inputs and two targets, one input and two targets; SeqIO marks one token more than inputs."""
  targets = np.array([[2, 3, 4, 5, 1, 2, 3, 1]])
  segments, positions = np.array([[1] * 5 + [2] * 3]), np.array([[0, 1, 2, 3, 4, 0, 1, 2]])
  prefix = np.array([[1, 1, 1, 1, 0, 1, 1, 0]])
  for wrong, right in ((2, 2), (3, 1), (5, 2), (6, 1)):
    found = targets.copy()
    found[0, wrong] = 0
    sums = losses.example_sums(jax.nn.one_hot(found, 6), jnp.asarray(targets), segments, positions, prefix)
    assert (float(sums['count']), float(sums['right'])) == (2, right)


def statistics_of(seed=1, empty=()):
  """Returns random statistics of four groups of eight tokens; those of empty groups are zero."""
  random = np.random.default_rng(seed)
  wanted = random.multinomial(8, [1 / EXPERTS] * EXPERTS, GROUPS).astype(np.float32)
  probability = random.dirichlet([1.0] * EXPERTS, GROUPS).astype(np.float32) * 8
  rest = random.random((3, GROUPS)).astype(np.float32) * 8
  first = wanted[::-1]  # what is balanced need not be the first choices
  found = RoutingStatistics(np.full(GROUPS, 8, np.float32), first, wanted, probability, *rest)
  full = ~np.isin(np.arange(GROUPS), empty)
  return jax.tree.map(lambda x: jnp.asarray((x.T * full).T), found)


def balance(statistics):
  """Returns the balance loss of each group that has tokens (equation 4)."""
  has = np.asarray(statistics.tokens) > 0
  fraction, probability = (np.asarray(x)[has] / 8 for x in (statistics.balanced_tokens, statistics.expert_probability))
  return EXPERTS * (fraction * probability).sum(-1)


def model_of(**moe):
  return ModelConfig(
    vocab_size=8, emb_dim=4, num_heads=2, head_dim=2, mlp_dim=8, num_encoder_layers=2, num_decoder_layers=2,
    moe=MoeConfig(num_experts=EXPERTS, **moe),
  )  # fmt: skip


@pytest.mark.parametrize(('aggregate', 'combine'), [('sum', np.sum), ('mean', np.mean)])
def test_router_losses(aggregate, combine):
  layers = {'encoder_1': statistics_of(1), 'decoder_1': statistics_of(2, empty=(1, 3))}
  routers = {layer: RouterSums.of(value) for layer, value in layers.items()}
  config = model_of(router_loss_aggregate=aggregate, aux_loss_factor=0.5, router_z_loss_factor=0.25)
  total, metrics = losses.router_losses(routers, config)
  balances = {layer: balance(value).mean() for layer, value in layers.items()}
  z_losses = {layer: value.squared_log_partition.sum() / value.tokens.sum() for layer, value in layers.items()}
  for layer in layers:
    np.testing.assert_allclose(metrics[f'load_balance_loss/{layer}'], balances[layer], rtol=1e-5)
    np.testing.assert_allclose(metrics[f'router_z_loss/{layer}'], z_losses[layer], rtol=1e-5)
  expected = 0.5 * combine(list(balances.values())) + 0.25 * combine(list(z_losses.values()))
  np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_router_losses_of_parts_add_up():
  whole = statistics_of(2, empty=(3,))
  parts = [jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], whole) for i in (0, 1)]
  config = model_of(router_z_loss_factor=0.25)
  counts = {'encoder': RouterCounts.of_groups(whole.tokens)}
  expected, _ = losses.router_losses({'encoder_1': RouterSums.of(whole)}, config)
  found = [losses.router_losses({'encoder_1': RouterSums.of(part)}, config, counts)[0] for part in parts]
  np.testing.assert_allclose(sum(found), expected, rtol=1e-6)
  added = jax.tree.map(jnp.add, *(RouterSums.of(part) for part in parts))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, RouterSums.of(whole))


def test_a_dense_model_has_no_router_loss():
  total, metrics = losses.router_losses({}, dataclasses.replace(model_of(), moe=None))
  assert (float(total), metrics, losses.routing_metrics({})) == (0.0, {}, {})


def test_routing_metrics():
  loads = {'encoder_1': [8.0, 4.0, 0.0], 'decoder_1': [3.0, 3.0, 3.0]}
  routers = {
    layer: RouterSums(*np.array([1.0, sum(load)]), np.array(load), *np.array([3.0, 6.0, 0.0, 0.0]))
    for layer, load in loads.items()
  }
  found = losses.routing_metrics(routers)
  expected = {
    'fraction_dropped/encoder_1': 0.25, 'fraction_dropped/decoder_1': 1 / 3, 'fraction_dropped': 7 / 24,
    'router_entropy/encoder_1': 0.5, 'router_entropy/decoder_1': 2 / 3, 'router_entropy': 7 / 12,
    'expert_load_max_over_mean/encoder_1': 2.0, 'expert_load_max_over_mean/decoder_1': 1.0,
    'expert_load_max_over_mean': 2.0,
    'experts_unused/encoder_1': 1.0, 'experts_unused/decoder_1': 0.0, 'experts_unused': 1.0,
  }  # fmt: skip
  assert found == pytest.approx(expected)
  assert {type(value) for value in found.values()} == {np.float64}
  without = losses.routing_metrics(routers, entropy=False)
  assert set(found) - set(without) == {name for name in expected if 'entropy' in name}


def logits_for(choices, num_experts, strength=2.0):
  """Returns logits `[1, s, e]` whose argmax is the given expert."""
  return jnp.asarray(strength * np.eye(num_experts)[choices], jnp.float32)[None]


def statistics_of_logits(logits):
  config = MoeConfig(num_experts=logits.shape[-1])
  return ROUTE(logits, jnp.ones(logits.shape[:2], bool), config=config, capacity=1, deterministic=True)[1]


def test_balance_loss_is_one_at_uniform_and_n_at_collapse():
  uniform = statistics_of_logits(logits_for([0, 1, 2, 3], num_experts=4, strength=1e-3))
  np.testing.assert_allclose(losses.balance_loss_sum(uniform), 1.0, rtol=1e-5)
  collapsed = statistics_of_logits(logits_for([2, 2, 2, 2], num_experts=4, strength=50.0))
  np.testing.assert_allclose(losses.balance_loss_sum(collapsed), 4.0, rtol=1e-5)


def test_balance_loss_has_a_gradient_through_p_only():
  def loss(logits):
    return losses.balance_loss_sum(statistics_of_logits(logits))

  logits = logits_for([0, 0, 0, 1], num_experts=2)
  gradient = jax.grad(loss)(logits)
  fraction = np.array([0.75, 0.25])
  probabilities = np.asarray(jax.nn.softmax(logits[0]))
  expected = 2 / 4 * probabilities * (fraction - (probabilities @ fraction)[:, None])
  np.testing.assert_allclose(gradient[0], expected, rtol=1e-5)
