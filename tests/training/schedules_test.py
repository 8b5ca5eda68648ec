"""Learning rates, ours and those of the user."""

import pytest

from switch_jax.config import ConfigError, OptimizerConfig
from switch_jax.training.schedules import make_schedule


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    (dict(learning_rate=2.0, warmup_steps=4), {0: 1.0, 4: 1.0, 16: 0.5, 100: 0.2}),
    (dict(schedule='constant', learning_rate=0.3, warmup_steps=0), {0: 0.3, 100: 0.3}),
    (dict(schedule='constant', learning_rate=0.3, warmup_steps=3), {0: 0.0, 1: 0.1, 3: 0.3, 100: 0.3}),
    (
      dict(schedule='linear', learning_rate=0.4, warmup_steps=4, decay_steps=12),
      {0: 0.0, 2: 0.2, 4: 0.4, 8: 0.2, 12: 0.0, 20: 0.0},
    ),
    (dict(schedule='linear', learning_rate=0.4, warmup_steps=0, decay_steps=8), {0: 0.4, 2: 0.3, 8: 0.0}),
    (
      dict(schedule='linear', learning_rate=0.4, warmup_steps=0, decay_steps=8, final_fraction=0.5),
      {0: 0.4, 4: 0.3, 8: 0.2, 20: 0.2},
    ),
    (
      dict(schedule='cosine', learning_rate=0.4, warmup_steps=4, decay_steps=12),
      {0: 0.0, 2: 0.2, 4: 0.4, 6: 0.2 * (1 + 0.5**0.5), 8: 0.2, 12: 0.0, 20: 0.0},
    ),
    (
      dict(schedule='cosine', learning_rate=0.4, warmup_steps=0, decay_steps=8, final_fraction=0.1),
      {0: 0.4, 4: 0.22, 8: 0.04, 20: 0.04},
    ),
    (
      dict(
        schedule='warmup_stable_decay',
        learning_rate=0.4,
        warmup_steps=4,
        decay_begin=8,
        decay_steps=12,
        final_fraction=0.25,
      ),
      {0: 0.0, 2: 0.2, 4: 0.4, 6: 0.4, 8: 0.4, 10: 0.25, 12: 0.1, 20: 0.1},
    ),
    (
      dict(schedule='warmup_stable_decay', learning_rate=0.4, warmup_steps=0, decay_begin=0, decay_steps=2),
      {0: 0.4, 1: 0.2, 2: 0.0},
    ),
  ],
)
def test_learning_rates(fields, expected):
  schedule = make_schedule(OptimizerConfig(**fields))
  found = {step: float(schedule(step)) for step in expected}
  assert found == pytest.approx(expected, abs=1e-7)


@pytest.fixture
def own(tmp_path, monkeypatch):
  """Writes the module of the user."""
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'my_schedules.py').write_text(
    'def halved(config):\n  return lambda step: config.learning_rate / (step + 1)\n'
    'def of_text(config):\n  return lambda step: "0.1"\n'
    'def of_vectors(config):\n  return lambda step: (step + 1.0) * [1, 2]\n'
    'def nothing(config):\n  pass\n'
    'number = 3\n'
  )


def test_an_own_schedule(own):
  schedule = make_schedule(OptimizerConfig(schedule='my_schedules:halved', learning_rate=0.4))
  assert float(schedule(1)) == pytest.approx(0.2)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('my_schedule:halved', r"cannot be imported \(ModuleNotFoundError: No module named 'my_schedule'"),
    ('my_schedules:halve', "there is no halve in my_schedules. Did you mean 'halved'"),
    ('my_schedules:number', 'which is 3; name a function'),
    ('my_schedules:nothing', r'failed \(TypeError: .*NoneType'),
    ('my_schedules:of_text', r'failed \(TypeError: '),
  ],
)
def test_an_own_schedule_that_cannot_be_used(own, name, message):
  with pytest.raises(ConfigError, match=message) as raised:
    make_schedule(OptimizerConfig(schedule=name))
  assert str(raised.value).startswith(f"OptimizerConfig.schedule is '{name}', ")
