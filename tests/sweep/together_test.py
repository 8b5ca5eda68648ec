"""Points that one process trains: in groups of those at the same step, each with its own error."""

import pytest

from switch_jax import training
from switch_jax.monitoring.loss_watch import DivergenceError
from switch_jax.sweep import together
from switch_jax.sweep.together import train_points
from tests.training.loop_test import run_of


class Result:
  step = 4

  def __init__(self, reason):
    self.reason = reason


@pytest.fixture
def groups(tmp_path, monkeypatch):
  """Returns the runs of four folders, of which the second and the fourth are at step 3, and what is trained together.

  The second diverges.
  """
  runs = [run_of(tmp_path / name) for name in 'abcd']
  steps = {runs[1].model_dir: 3, runs[3].model_dir: 3}
  trained = []

  class Store:
    def __init__(self, model_dir):
      self.latest_whole_step = lambda: steps.get(model_dir)

  def train_together(group, gins, keep):
    trained.append(list(zip((run.model_dir[-1] for run in group), gins, strict=True)))
    return [DivergenceError('it is nan', 3) if run is runs[1] else Result('finished') for run in group]

  monkeypatch.setattr(together, 'CheckpointStore', Store)
  monkeypatch.setattr(training, 'train_together', train_together)
  return runs, trained


def test_those_at_the_same_step_are_trained_together(groups, capsys):
  runs, trained = groups
  assert train_points(runs, '1234') == ([None, 'it is nan', None, None], 0)
  assert trained == [[('a', '1'), ('c', '3')], [('b', '2'), ('d', '4')]]
  assert capsys.readouterr().out.splitlines()[-1] == f'{runs[3].model_dir}: finished, step 4'


def test_a_signal_ends_all(groups, monkeypatch):
  runs, _ = groups
  monkeypatch.setattr(training, 'train_together', lambda group, gins, keep: [Result('SIGTERM')] * len(group))
  assert train_points(runs, '1234') == ([None] * 4, 143)
