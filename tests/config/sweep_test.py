"""Sweeps that contradict themselves; see also `tests/sweep/points_test.py`, which makes points of them."""

import pytest

from switch_jax.config import ConfigError, SweepConfig


def test_json_round_trip():
  sweep = SweepConfig(grid={'X': [1, 'a']}, points=[{'name': 'a', 'gin_file': 'own.gin'}], seeds=[0])
  assert sweep.grid == {'X': (1, 'a')}
  assert SweepConfig.from_json(sweep.to_json()) == sweep


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(grid={'name': ('a',)}), "'name' is for points"),
    (dict(grid={'gin_file': (('a.gin', ''),)}), 'must be the path of a gin file, or a tuple of them'),
    (dict(points=({'gin_file': 3},)), 'must be the path of a gin file, or a tuple of them'),
    (dict(points=({'MODEL_DIR': 'a'},)), 'each point has its own, under --out'),
    (dict(points=({'X-Y': 1},)), "'X-Y' is no binding"),
    (dict(points=({'name': 3},)), 'a name is a text that is not empty, and one is 3'),
    (dict(points=({'RANDOM_SEED': 1},), seeds=(2,)), 'binds RANDOM_SEED too'),
  ],
)
def test_mistakes(fields, message):
  with pytest.raises(ConfigError, match=message):
    SweepConfig(**fields)
