"""A run that makes no sense is ended and says where it began; routers that go wrong are named with a remedy."""

import math

import numpy as np
import pytest

from switch_jax.config import ConfigError, HealthConfig, MoeConfig
from switch_jax.monitoring.loss_watch import DivergenceError, LossWatch
from switch_jax.monitoring.router_health import RouterHealth, heat_map

LAYERS = ('decoder_1', 'encoder_1')


@pytest.mark.parametrize(
  ('loss', 'norm', 'message'),
  [
    (math.nan, 1.0, r'the loss of step 3 is nan'),
    (math.inf, 1.0, r'the loss of step 3 is inf'),
    (1.0, math.nan, r'the gradient norm of step 3 is nan'),
  ],
)
def test_what_is_no_number_ends_the_run_at_once(loss, norm, message):
  watch = LossWatch(HealthConfig(divergence_factor=None))
  for step in (1, 2):
    watch.check(step, 5.0, 1.0)
  with pytest.raises(DivergenceError, match=message) as caught:
    watch.check(3, loss, norm)
  assert caught.value.began == 3


def test_a_loss_that_leaves_for_good_ends_the_run():
  watch = LossWatch(HealthConfig(window=4, divergence_factor=2.0))
  losses = [6.0] * 10 + [2.0] * 10 + [9.0] + [2.0] * 5 + [5.5] * 4
  for step, loss in enumerate(losses[:-1], 1):
    watch.check(step, loss, 1.0)
  with pytest.raises(DivergenceError, match=r'is 5\.500 at step 30 and was 2\.000 at step 14; it began at step 27'):
    watch.check(30, losses[-1], 1.0)


def test_a_spike_and_a_slow_start_are_no_divergence():
  watch = LossWatch(HealthConfig(window=10))
  for step in range(1, 200):
    watch.check(step, 30.0 if step == 100 else 6.0 - step / 50, 1.0)


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


def test_settings_that_cannot_be():
  with pytest.raises(ConfigError, match=r'divergence_factor is 0\.5'):
    HealthConfig(divergence_factor=0.5)
