"""Runs that are trained together: each comes to what it comes to alone, and can go on alone and together."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

from switch_jax import config
from switch_jax.checkpoints import CheckpointStore
from switch_jax.folders.metric_lines import read_metrics
from switch_jax.folders.model_dir import ModelDir
from switch_jax.monitoring.loss_watch import DivergenceError, LossWatch
from switch_jax.monitoring.profiling import Profiler
from switch_jax.training import opening, together
from switch_jax.training.loop import train
from switch_jax.training.together import train_together
from tests.training.loop_test import MODEL, TASK, run_of, threads

NOISY = dataclasses.replace(MODEL, dropout_rate=0.1)
NOT_COMPARED = {'steps_per_second', 'target_tokens_per_second', 'input_wait_fraction', 'host_memory_gib'}


def runs_in(folder, steps=4):
  """Returns runs of two seeds and two learning rates; all but the last may go on."""
  first = run_of(folder / 'a', steps=steps, model=NOISY)
  slower = dataclasses.replace(first.optimizer, learning_rate=0.3)
  of = lambda name, seed, optimizer: dataclasses.replace(  # noqa: E731
    first, model_dir=str(folder / name), random_seed=seed, optimizer=optimizer
  )
  return [first, of('b', 1, first.optimizer), of('c', 1, slower), of('diverging', 2, first.optimizer)]


@pytest.fixture(scope='module')
def one_device():
  """The tests have eight devices, and runs are trained together on one."""
  with pytest.MonkeyPatch.context() as patch:
    for module in (opening, together):
      patch.setattr(module, 'make_layout', functools.partial(opening.make_layout, devices=jax.devices()[:1]))
    yield


@pytest.fixture(scope='module')
def alone(tmp_path_factory, one_device):
  """Returns the second and the third run, trained one after the other, and their results."""
  runs = runs_in(tmp_path_factory.mktemp('alone'))[1:3]
  return runs, [train(run, config_gin='# as written\n') for run in runs]


@pytest.fixture(scope='module')
def stopped(tmp_path_factory, one_device):
  """Returns runs that were trained together until SIGTERM came, and their results. The last one diverges before.

  The state of its first step is taken for no number.
  """
  runs, before, watches = runs_in(tmp_path_factory.mktemp('together')), threads(), []
  check = LossWatch.check

  def see_nan(self, step, loss, grad_norm):
    if self not in watches:
      watches.append(self)
    check(self, step, math.nan if watches.index(self) == 3 else loss, grad_norm)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(LossWatch, 'check', see_nan)
    patch.setattr(Profiler, 'after', lambda self, step, result: step == 2 and os.kill(os.getpid(), signal.SIGTERM))
    results = train_together(runs, ['# as written\n'] * 4)
  assert threads() <= before
  return runs, results


@pytest.fixture(scope='module')
def finished(stopped):
  """Returns the runs that went on: one alone, then the others together."""
  runs = stopped[0][:3]
  assert train(runs[1]).reason == 'finished'
  return runs, train_together(runs, ['# as written\n'] * 3)


def test_a_signal_saves_all_and_a_divergence_ends_one(stopped):
  runs, results = stopped
  assert [(result.reason, result.step, int(result.state.step)) for result in results[:3]] == [('SIGTERM', 2, 2)] * 3
  assert isinstance(results[3], DivergenceError)
  assert 'the loss of step 1 is nan' in str(results[3])
  assert [CheckpointStore(run.model_dir).steps() for run in runs] == [[2], [2], [2], []]


def same_lines(one, other, name):
  """Compares the lines of metrics of two folders, times apart."""
  left, right = read_metrics(one / name), read_metrics(other / name)
  assert [line['step'] for line in left] == [line['step'] for line in right]
  for a, b in zip(left, right, strict=True):
    assert a.keys() - NOT_COMPARED == b.keys() - NOT_COMPARED
    for key in a.keys() - NOT_COMPARED:
      np.testing.assert_allclose(a[key], b[key], rtol=1e-5 if 'loss' in key else 1e-3, atol=1e-5, err_msg=key)


def test_each_comes_to_what_it_comes_to_alone(alone, finished):
  _, results = finished
  assert [result.reason for result in results] == ['finished', 'nothing to do', 'finished']
  for one, other in zip(alone[1], results[1:], strict=True):
    assert other.step == int(other.state.step) == 4
    for place in ('train', f'eval/{TASK}'):
      same_lines(one.model_dir.path / place, other.model_dir.path / place, 'metrics.jsonl')
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      jax.device_get(one.state),
      jax.device_get(other.state),
    )
  assert len({result.held_out['cross_ent_loss'] for result in results}) == 3
  assert results[2].facts.target_tokens == alone[1][1].facts.target_tokens


def test_the_same_files(alone, finished):
  names = lambda run: {  # noqa: E731
    str(path.relative_to(run.model_dir))
    for path in pathlib.Path(run.model_dir).rglob('*')
    if not path.name.startswith('events.') and 'checkpoints' not in str(path)
  }
  one, other = alone[0][1], finished[0][2]
  assert names(one) == names(other)
  assert ModelDir(other.model_dir).config_gin.read_text() == '# as written\n'
  left, right = (json.loads((ModelDir(run.model_dir).step(4) / 'config.json').read_text()) for run in (one, other))
  for record in (left, right):
    record['run'].pop('model_dir')
  assert left == right


def test_runs_at_different_steps(finished, tmp_path):
  runs = [dataclasses.replace(finished[0][0], train_steps=6), run_of(tmp_path / 'new', steps=6, model=NOISY)]
  with pytest.raises(config.ConfigError, match=r'at the same step, .*/a at 4, .*/new at 0\. Train those'):
    train_together(runs, [''] * 2)


def test_several_devices(tmp_path, monkeypatch):
  for module in (opening, together):
    monkeypatch.setattr(module, 'make_layout', getattr(opening.make_layout, 'func', opening.make_layout))
  with pytest.raises(config.ConfigError, match='on one device, and there are 8'):
    train_together(runs_in(tmp_path)[:2], [''] * 2)
