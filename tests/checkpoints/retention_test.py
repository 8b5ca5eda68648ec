"""Which checkpoints stay: the newest, every n-th, the best; the last two in any case."""

import pytest

from switch_jax.checkpoints.retention import steps_to_remove
from switch_jax.config import CheckpointConfig

STEPS = [10, 20, 30, 40, 50, 60]


def kept(scores=None, steps=STEPS, **policy):
  removed = steps_to_remove(steps, CheckpointConfig(period=10, **policy), scores or {})
  return [step for step in steps if step not in removed]


@pytest.mark.parametrize(
  ('policy', 'expected'),
  [
    ({'keep': None}, STEPS),
    ({'keep': 3}, [40, 50, 60]),
    ({'keep': 2, 'keep_every': 30}, [30, 50, 60]),
    ({'keep': 2, 'keep_best': 2}, [10, 30, 50, 60]),
    ({'keep': 2, 'keep_best': 1, 'best_is': 'highest'}, [20, 50, 60]),
    ({'keep': 2, 'keep_best': 1, 'keep_every': 40}, [30, 40, 50, 60]),
  ],
)
def test_policies(policy, expected):
  assert kept({10: 2.0, 20: 3.0, 30: 1.0, 40: float('nan')}, **policy) == expected


def test_few_steps_are_all_kept():
  assert kept(steps=[10, 20], keep=2) == [10, 20]
  assert kept(steps=[], keep=2) == []
