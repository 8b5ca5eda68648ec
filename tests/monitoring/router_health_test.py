"""Routers that go wrong are named with a remedy."""

import numpy as np

from switch_jax.config import MoeConfig
from switch_jax.monitoring.router_health import RouterHealth, heat_map

LAYERS = ('decoder_1', 'encoder_1')


def routers(loads, drops=(0.0, 0.0), z_loss=(1.0, 1.0)):
  return {
    'expert_tokens': np.asarray(loads, np.float32),
    'fraction_dropped': np.asarray(drops, np.float32),
    'router_z_loss': np.asarray(z_loss, np.float32),
  }


def judge(*windows):
  """Returns the warnings at the end of each window of two equal steps."""
  health, step, found = RouterHealth(MoeConfig(num_experts=4), LAYERS, 2), 0, []
  for window in windows:
    assert health.add(step + 1, window) == []
    found.append(health.add(step + 2, window))
    step += 2
  return found


EVEN = [[8, 8, 8, 8], [8, 8, 8, 8]]


def test_healthy_routers_are_silent():
  assert judge(routers(EVEN), routers(EVEN, drops=(0.05, 0.09))) == [[], []]


def test_experts_without_tokens_are_named_once():
  wrong = routers([[8, 8, 8, 8], [0, 16, 16, 0]])
  found = judge(wrong, wrong, routers(EVEN), wrong)
  assert [len(warnings) for warnings in found] == [1, 0, 0, 1]
  assert found[0][0].startswith('warning: encoder_1: 2 of 4 experts got no token in steps 1 to 2 (0, 3)')
  assert 'AUX_LOSS_FACTOR (now 0.01)' in found[0][0]


def test_a_collapsed_load():
  [[warning]] = judge(routers([[1, 1, 1, 29], [8, 8, 8, 8]]))
  assert warning.startswith('warning: decoder_1: expert 3 got 91% of all tokens in steps 1 to 2')


def test_k_experts_of_a_token_that_take_all():
  """Even loads of 2 of 4 are half of the choices for any two experts; the remedy is what balances."""
  moe = MoeConfig(num_experts=4, router='topk', bias_update_rate=0.001, aux_loss_factor=0.0)
  health = RouterHealth(moe, LAYERS, 1)
  assert health.add(1, routers([[16, 16, 16, 16], [22, 22, 10, 10]])) == []
  [warning] = health.add(2, routers([[16, 16, 16, 16], [2, 28, 28, 6]]))
  assert warning == (
    'warning: encoder_1: 2 experts together, 1, 2, got 88% of all tokens in steps 2 to 2; the load has collapsed. '
    'Raise config.MoeConfig.bias_update_rate (now 0.001) or lower LEARNING_RATE.'
  )


def test_drops_that_spike():
  found = judge(routers(EVEN, drops=(0.5, 0.5)), routers(EVEN, drops=(0.02, 0.3)), routers(EVEN, drops=(0.2, 0.3)))
  assert found[:2] == [[], []]
  assert found[2][0].startswith('warning: decoder_1: 20% of the tokens were dropped in steps 5 to 6, after 2.0%')
  assert len(found[2]) == 1


def test_logits_that_grow():
  [[warning]] = judge(routers(EVEN, z_loss=(5.0, 400.0)))
  assert 'encoder_1: the router z-loss is 400' in warning
  assert 'router_z_loss_factor=0.001' in warning


def test_heat_map_shows_each_expert():
  picture = heat_map(np.array([[0, 2, 4, 2], [1, 1, 1, 1]]), cell=3)
  assert picture.shape == (6, 12, 3)
  assert picture.dtype == np.uint8
  assert tuple(picture[0, 0]) == (255, 255, 255)
  assert tuple(picture[1, 4]) == tuple(picture[5, 0]) == (253, 174, 97)
  assert tuple(picture[0, 6]) == (165, 0, 38)
