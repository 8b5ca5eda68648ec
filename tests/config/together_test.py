"""Which runs can be trained together, and what is said of those that cannot."""

import dataclasses

import pytest

from switch_jax import config
from switch_jax.config.together import check_together, settings_in_common
from tests.training.loop_test import run_of

RUN = run_of('a')
FASTER = dataclasses.replace(RUN.optimizer, learning_rate=2.0)
OWN = dataclasses.replace(RUN.optimizer, schedule='my_module:my_schedule')
DISTILLED = dataclasses.replace(RUN, distillation=config.DistillationConfig(teacher_path='t', initialize=()))


def of(**fields):
  return dataclasses.replace(RUN, **{'model_dir': 'b', **fields})


@pytest.mark.parametrize(
  'other', [of(), of(random_seed=3), of(optimizer=FASTER), of(initial_checkpoint_path='some/run')], ids=str
)
def test_what_may_differ(other):
  assert settings_in_common(RUN) == settings_in_common(other)
  check_together([RUN, other])


@pytest.mark.parametrize(
  ('runs', 'message'),
  [
    ([RUN, of(train_steps=5)], 'a and b differ in train_steps; runs'),
    ([RUN, of(model=dataclasses.replace(RUN.model, moe=None))], 'differ in model.moe'),
    (
      [of(optimizer=OWN), of(optimizer=dataclasses.replace(OWN, learning_rate=2.0))],
      'differ in optimizer.learning_rate',
    ),
    ([RUN, of(model_dir='a')], 'a is the MODEL_DIR of two runs'),
    ([RUN, DISTILLED], 'a has RunConfig.distillation'),
    ([of(trackers=('mlflow',)), RUN], 'b has RunConfig.trackers'),
  ],
)
def test_what_may_not(runs, message):
  with pytest.raises(config.ConfigError, match=message):
    check_together(runs)


def test_an_own_schedule_with_one_rate():
  check_together([of(optimizer=OWN), of(optimizer=OWN, model_dir='c')])
