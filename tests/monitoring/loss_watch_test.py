"""A run that makes no sense is ended and says where it began."""

import math

import pytest

from switch_jax.config import ConfigError, HealthConfig
from switch_jax.monitoring.loss_watch import DivergenceError, LossWatch


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


def test_settings_that_cannot_be():
  with pytest.raises(ConfigError, match=r'divergence_factor is 0\.5'):
    HealthConfig(divergence_factor=0.5)
