"""Runs that are trained together: each comes to what it comes to alone, and can go on alone."""

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
from switch_jax.training import opening
from switch_jax.training.loop import train
from switch_jax.training.together import train_together
from tests.training.loop_test import MODEL, TASK, run_of, threads

NOISY = dataclasses.replace(MODEL, dropout_rate=0.1)


@pytest.fixture(scope='module', autouse=True)
def one_device():
  """The tests have eight devices, and runs are trained together on one."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(opening, 'make_layout', functools.partial(opening.make_layout, devices=jax.devices()[:1]))
    yield


def runs_in(folder, steps=4, **fields):
  """Returns three runs: two seeds, and another learning rate."""
  first = run_of(folder / 'a', steps=steps, model=NOISY, **fields)
  rate = dataclasses.replace(first.optimizer, learning_rate=0.3)
  return [
    first,
    dataclasses.replace(first, model_dir=str(folder / 'b'), random_seed=1),
    dataclasses.replace(first, model_dir=str(folder / 'c'), random_seed=1, optimizer=rate),
  ]


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """Returns three runs that were trained one after the other, and their results."""
  runs = runs_in(tmp_path_factory.mktemp('alone'))
  return runs, [train(run, config_gin='# as written\n') for run in runs]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Returns three runs that were trained together, and their results."""
  runs, before = runs_in(tmp_path_factory.mktemp('together')), threads()
  results = train_together(runs, ['# as written\n'] * 3)
  assert threads() <= before
  return runs, results


def assert_close(left, right):
  """Compares states: Adafactor divides by roots of small numbers, so that rounding grows."""
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), left, right)


def same_lines(one, other, name):
  """Compares the lines of metrics of two folders, times apart."""
  left, right = read_metrics(one / name), read_metrics(other / name)
  assert [line['step'] for line in left] == [line['step'] for line in right]
  for a, b in zip(left, right, strict=True):
    assert a.keys() == b.keys()
    for key in a.keys() - {'steps_per_second', 'target_tokens_per_second', 'input_wait_fraction'}:
      np.testing.assert_allclose(a[key], b[key], rtol=1e-5 if 'loss' in key else 1e-3, atol=1e-5, err_msg=key)


def test_each_comes_to_what_it_comes_to_alone(alone, finished):
  for one, other in zip(alone[1], finished[1], strict=True):
    assert (other.reason, other.step, int(other.state.step)) == ('finished', 4, 4)
    for place in ('train', f'eval/{TASK}'):
      same_lines(one.model_dir.path / place, other.model_dir.path / place, 'metrics.jsonl')
    assert_close(jax.device_get(one.state), jax.device_get(other.state))
    np.testing.assert_allclose(one.facts.held_out_after, other.facts.held_out_after, rtol=1e-5)
    assert other.facts.target_tokens == one.facts.target_tokens
  assert len({result.held_out['cross_ent_loss'] for result in finished[1]}) == 3


def test_the_same_files(alone, finished):
  names = lambda run: {  # noqa: E731
    str(path.relative_to(run.model_dir))
    for path in pathlib.Path(run.model_dir).rglob('*')
    if not path.name.startswith('events.') and '/state/' not in str(path)
  }
  for one, other in zip(alone[0], finished[0], strict=True):
    assert names(one) == names(other)
    assert ModelDir(other.model_dir).config_gin.read_text() == '# as written\n'
    left, right = (json.loads((ModelDir(run.model_dir).step(4) / 'config.json').read_text()) for run in (one, other))
    for record in (left, right):
      record['run'].pop('model_dir')
    assert left == right


def test_nothing_to_do(finished):
  runs, results = finished
  again = train_together(runs, [''] * 3)
  assert [result.reason for result in again] == ['nothing to do'] * 3
  assert [result.held_out for result in again] == [result.held_out for result in results]


def test_interrupted_runs_go_on_together_or_alone(alone, tmp_path, monkeypatch):
  runs = runs_in(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(Profiler, 'after', lambda profiler, step, result: os.kill(os.getpid(), signal.SIGTERM))
    stopped = train_together(runs, [''] * 3)
  assert [(result.reason, result.step) for result in stopped] == [('SIGTERM', 1)] * 3
  ended = train(runs[1])
  assert (ended.reason, ended.step) == ('finished', 4)
  results = train_together(runs, [''] * 3)
  assert [result.reason for result in results] == ['finished', 'nothing to do', 'finished']
  for one, other in zip(alone[1], results, strict=True):
    assert_close(jax.device_get(one.state), jax.device_get(other.state))
    same_lines(one.model_dir.path / 'train', other.model_dir.path / 'train', 'metrics.jsonl')


def test_a_divergence_ends_one_alone(tmp_path, monkeypatch):
  """The loss of the second one is taken for no number in step 3."""
  check, watches = LossWatch.check, []

  def see_nan(self, step, loss, grad_norm):
    if self not in watches:
      watches.append(self)
    check(self, step, math.nan if step == 3 and watches.index(self) == 1 else loss, grad_norm)

  monkeypatch.setattr(LossWatch, 'check', see_nan)
  results = train_together(runs_in(tmp_path), [''] * 3)
  assert [getattr(result, 'step', None) for result in results] == [4, None, 4]
  assert isinstance(results[1], DivergenceError)
  assert 'the loss of step 3 is nan' in str(results[1])
  assert CheckpointStore(tmp_path / 'b').steps() == []


def test_runs_at_different_steps(finished, tmp_path):
  runs = [dataclasses.replace(finished[0][0], train_steps=6), run_of(tmp_path / 'new', steps=6, model=NOISY)]
  with pytest.raises(config.ConfigError, match=r'at the same step, .*/a at 4, .*/new at 0\. Train those'):
    train_together(runs, [''] * 2)


def test_several_devices(tmp_path, monkeypatch):
  monkeypatch.setattr(opening, 'make_layout', opening.make_layout.func)
  with pytest.raises(config.ConfigError, match='on one device, and there are 8'):
    train_together(runs_in(tmp_path)[:2], [''] * 2)
