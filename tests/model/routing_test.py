"""Routing decisions on tables small enough to check by eye, and against flaxformer's."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.config import MoeConfig
from switch_jax.kernels.decisions import BY_PRODUCTS, CUMULATIVE, SORTED
from switch_jax.model import losses
from switch_jax.model.dispatch import one_hot_dispatch
from switch_jax.model.routing import expert_capacity, first_come_slots, route

ROUTE = jax.jit(route, static_argnames=('config', 'capacity', 'deterministic'))
FLAXFORMER = np.load(pathlib.Path(__file__).parents[1] / 'fixtures' / 'flaxformer_routing.npz')


def moe(num_experts=2, **fields):
  if fields.get('router') == 'expert_choice' or fields.get('slot_priority') == 'probability':
    fields |= dict(decoder_layers=())
  return MoeConfig(num_experts=num_experts, **fields)


def logits_of(*choices, num_experts=2, strength=2.0):
  """Returns logits `[1, s, e]` whose argmax is the given expert; None is a tie of all."""
  rows = [np.zeros(num_experts) if c is None else strength * np.eye(num_experts)[c] for c in choices]
  return jnp.asarray(rows, jnp.float32)[None]


def decide(logits, capacity, real=None, deterministic=True, **fields):
  real = jnp.ones(logits.shape[:2], bool) if real is None else jnp.asarray(real, bool)
  return ROUTE(logits, real, moe(logits.shape[-1], **fields), capacity, deterministic=deterministic)


@pytest.mark.parametrize(
  ('tokens', 'factor', 'rounding', 'minimum', 'expected'),
  [
    (6, 1.0, 'floor', 1, 2),  # figure 3 of the paper: 6 tokens, 3 experts
    (6, 1.5, 'floor', 1, 3),
    (7, 1.0, 'floor', 1, 2),
    (8, 1.0, 'round', 1, 3),  # 2.67
    (6, 0.1, 'floor', 1, 1),
    (6, 0.1, 'floor', 4, 4),
    (2, 1.0, 'floor', 4, 2),  # never more than the group has
    (6, None, 'floor', 1, None),
  ],
)
def test_capacity(tokens, factor, rounding, minimum, expected):
  config = MoeConfig(
    num_experts=3, train_capacity_factor=factor, capacity_rounding=rounding, min_expert_capacity=minimum
  )
  assert expert_capacity(config, tokens, deterministic=False) == expected


def test_capacity_of_training_and_evaluation_differ():
  config = MoeConfig(num_experts=4, train_capacity_factor=1.0, eval_capacity_factor=2.0)
  assert [expert_capacity(config, 16, d) for d in (False, True)] == [4, 8]


def test_absolute_capacity_replaces_both_factors():
  config = MoeConfig(num_experts=4, expert_capacity=3, min_expert_capacity=4)
  assert [expert_capacity(config, 16, d) for d in (False, True)] == [3, 3]


def test_first_come_first_served_and_first_choices_before_second():
  # Token 0 wants experts 0 then 1, token 1 wants 1 then 0, token 2 wants 0 then 1.
  expert = jnp.array([[[0, 1], [1, 0], [0, 1]]], jnp.int32)
  slots = first_come_slots(expert, num_experts=2, capacity=2)
  np.testing.assert_array_equal(slots[0], [[0, 1], [0, -1], [1, -1]])


def test_top1_keeps_exactly_the_capacity_in_token_order():
  routing, statistics = decide(logits_of(0, 0, 1, 0, 0), capacity=2)
  np.testing.assert_array_equal(routing.expert[0, :, 0], [0, 0, 1, 0, 0])
  np.testing.assert_array_equal(routing.slot[0, :, 0], [0, 1, 0, -1, -1])
  probability = np.exp(2) / (1 + np.exp(2))
  np.testing.assert_allclose(routing.gate[0, :, 0], np.array([1, 1, 1, 0, 0]) * probability, rtol=1e-6)
  np.testing.assert_array_equal(statistics.expert_tokens, [[4, 1]])  # before dropping
  assert statistics.dropped == 2


def test_a_tie_goes_to_the_first_expert():
  routing, _ = decide(logits_of(None, None, num_experts=3), capacity=2)
  np.testing.assert_array_equal(routing.expert[0, :, 0], [0, 0])


def test_padding_takes_no_slot_and_does_not_count():
  routing, statistics = decide(logits_of(0, 0, 0), capacity=1, real=[[False, True, True]])
  np.testing.assert_array_equal(routing.slot[0, :, 0], [-1, 0, -1])
  assert statistics.tokens == 2
  assert statistics.dropped == 1
  np.testing.assert_array_equal(statistics.expert_tokens, [[2, 0]])


def test_padding_takes_slots_if_asked():
  routing, statistics = decide(logits_of(0, 0, 0), capacity=1, real=[[False, True, True]], padding_takes_slots=True)
  np.testing.assert_array_equal(routing.slot[0, :, 0], [0, -1, -1])
  assert statistics.tokens == 3


def test_a_group_of_padding_only_adds_nothing():
  logits = jnp.concatenate([logits_of(0, 1), logits_of(0, 0)])
  _, statistics = decide(logits, capacity=2, real=[[True, True], [False, False]])
  assert losses.RouterCounts.of_groups(statistics.tokens).groups == 1
  alone = decide(logits[:1], capacity=2)[1]
  np.testing.assert_allclose(losses.balance_loss_sum(statistics), losses.balance_loss_sum(alone), rtol=1e-6)


def test_slots_by_falling_probability():
  logits = jnp.concatenate([logits_of(0, strength=1.0), logits_of(0, 0, strength=3.0)], axis=1)
  routing, _ = decide(logits, capacity=2, slot_priority='probability')
  np.testing.assert_array_equal(routing.slot[0, :, 0], [-1, 0, 1])


def top2_logits():
  probabilities = np.array([[0.6, 0.3, 0.1], [0.95, 0.04, 0.01], [0.5, 0.1, 0.4]])
  return jnp.log(jnp.asarray(probabilities, jnp.float32))[None]


@pytest.mark.parametrize(
  ('policy', 'second_used'),
  [('all', [True, True, True]), ('none', [False, False, False]), ('threshold', [True, False, True])],
)
def test_top2_second_policies(policy, second_used):
  routing, _ = decide(top2_logits(), capacity=3, router='top2', second_policy_eval=policy)
  np.testing.assert_array_equal(routing.expert[0], [[0, 1], [0, 1], [0, 2]])
  np.testing.assert_array_equal(routing.slot[0, :, 1] >= 0, second_used)


def test_top2_random_keeps_the_second_with_probability_gate_over_threshold():
  # The second gate of the middle token is 0.04 / 0.99, so it is used below (0.04 / 0.99) / 0.2 = 0.202.
  config = moe(3, router='top2', second_policy_train='random')
  for uniform, used in [(0.19, True), (0.21, False)]:
    noise = jnp.full((1, 3), uniform)
    routing, _ = ROUTE(top2_logits(), jnp.ones((1, 3), bool), config, 3, deterministic=False, uniform=noise)
    np.testing.assert_array_equal(routing.slot[0, :, 1] >= 0, [True, used, True])


def test_top2_gates_are_normalised_or_raw():
  routing, _ = decide(top2_logits(), capacity=3, router='top2', second_policy_eval='all')
  np.testing.assert_allclose(routing.gate[0], [[2 / 3, 1 / 3], [95 / 99, 4 / 99], [5 / 9, 4 / 9]], rtol=1e-5)
  raw = decide(top2_logits(), capacity=3, router='top2', second_policy_eval='all', normalize_gates=False)[0]
  np.testing.assert_allclose(raw.gate[0], [[0.6, 0.3], [0.95, 0.04], [0.5, 0.4]], rtol=1e-5)


def test_no_token_left_behind_tries_the_next_choice():
  # All want expert 0, then 1, then 2; capacity 1 sends them one to each, and the fourth has nowhere to go.
  logits = jnp.broadcast_to(jnp.array([2.0, 1.0, 0.0]), (1, 4, 3))
  routing, statistics = decide(logits, capacity=1, router='no_token_left_behind', num_choices=3)
  np.testing.assert_array_equal(routing.expert[0, :3, 0], [0, 1, 2])
  np.testing.assert_array_equal(routing.slot[0, :, 0], [0, 0, 0, -1])
  probabilities = np.exp([2, 1, 0]) / np.exp([2, 1, 0]).sum()
  np.testing.assert_allclose(routing.gate[0, :, 0], [*probabilities, 0], rtol=1e-5)
  assert statistics.dropped == 1
  np.testing.assert_array_equal(statistics.expert_tokens, [[4, 0, 0]])


@pytest.mark.parametrize('decisions', [SORTED, CUMULATIVE, BY_PRODUCTS], ids=['sorted', 'cumulative', 'products'])
def test_no_token_left_behind_balances_all_choices(decisions):
  """As Mesh TensorFlow's code, whose mean of f P is over choices too; padding does not count."""
  random = np.random.default_rng(0)
  logits, real = random.normal(size=(2, 7, 5)).astype(np.float32), np.arange(7) < np.array([[7], [4]])
  config = moe(5, router='no_token_left_behind', num_choices=3)
  _, statistics = route(jnp.asarray(logits), real, config, 2, deterministic=True, decisions=decisions)
  loss = 0
  for group, count in enumerate((7, 4)):
    probabilities = np.asarray(jax.nn.softmax(logits[group, :count]))
    best = np.argsort(-probabilities, axis=-1)[:, :3]
    fractions = [np.bincount(best[:, k], minlength=5) / count for k in range(3)]
    np.testing.assert_array_equal(statistics.expert_tokens[group], fractions[0] * count)
    loss += 5 * 5 * np.mean([fraction * probabilities.mean(0) for fraction in fractions])
  np.testing.assert_allclose(losses.balance_loss_sum(statistics), loss, rtol=1e-5)


def test_no_token_left_behind_fills_behind_earlier_choices():
  # Tokens 0 and 1 want expert 0, token 2 wants expert 1: token 1 overflows into expert 1, behind token 2.
  logits = jnp.array([[[2.0, 1.0], [2.0, 1.0], [0.0, 3.0]]])
  routing, _ = decide(logits, capacity=2, router='no_token_left_behind', num_choices=2)
  np.testing.assert_array_equal(routing.slot[0, :, 0], [0, 1, 0])
  routing, _ = decide(logits, capacity=1, router='no_token_left_behind', num_choices=2)
  np.testing.assert_array_equal(routing.slot[0, :, 0], [0, -1, 0])


def test_experts_choose_their_best_tokens():
  logits = jnp.array([[[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
  routing, _ = decide(logits, capacity=2, router='expert_choice')
  np.testing.assert_array_equal(routing.slot[0, :, 0], [0, -1, 1])  # expert 0 likes tokens 0, 2, 1
  np.testing.assert_array_equal(routing.slot[0, :, 1], [-1, 0, 1])  # expert 1 likes tokens 1, 2, 0


def test_experts_do_not_choose_padding():
  logits = jnp.array([[[3.0, 0.0], [1.0, 0.0]]])
  routing, _ = decide(logits, capacity=2, real=[[False, True]], router='expert_choice')
  np.testing.assert_array_equal(routing.slot[0], [[-1, -1], [0, 0]])


def test_entropy_and_log_partition():
  _, statistics = decide(jnp.zeros((1, 2, 4)), capacity=2)
  np.testing.assert_allclose(statistics.entropy, 2 * np.log(4), rtol=1e-6)
  np.testing.assert_allclose(statistics.squared_log_partition, 2 * np.log(4) ** 2, rtol=1e-6)


ROUTERS = {
  'top1': dict(router='top1'),
  'top1_prioritized': dict(router='top1', slot_priority='probability'),
  'top2': dict(router='top2', second_policy_eval='all', normalize_gates=False),
  'top2_prioritized': dict(
    router='top2', second_policy_eval='all', normalize_gates=False, slot_priority='probability'
  ),
  'expert_choice': dict(router='expert_choice'),
}  # fmt: skip


@pytest.mark.parametrize('key', sorted(k for k in FLAXFORMER if k.endswith('combine')))
def test_equals_flaxformer(key):
  case, router, capacity, padding, _ = key.split('/')
  logits = jnp.asarray(FLAXFORMER[f'{case}/logits'])
  real = FLAXFORMER[f'{case}/nonpadding'] > 0 if padding == 'masked' else None
  expected = FLAXFORMER[key]
  capacity = int(capacity.removeprefix('capacity_'))
  routing, statistics = decide(logits, capacity, real, **ROUTERS[router])
  _, combine = one_hot_dispatch(routing, logits.shape[-1], expected.shape[-1])
  np.testing.assert_allclose(combine, expected, atol=1e-6)
  if router == 'top1' and padding == 'all':
    balance = losses.balance_loss_sum(statistics) / logits.shape[0]
    np.testing.assert_allclose(balance, FLAXFORMER[f'{case}/top1/capacity_{capacity}/all/balance'], rtol=1e-5)
    z_loss = np.sum(statistics.squared_log_partition) / np.sum(statistics.tokens)
    np.testing.assert_allclose(z_loss, FLAXFORMER[f'{case}/z_loss'], rtol=1e-5)
