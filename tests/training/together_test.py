"""Runs that are trained together: each comes to what it comes to alone, and can go on alone and together."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from switch_jax import config
from switch_jax.checkpoints import CheckpointStore
from switch_jax.folders.metric_lines import read_metrics
from switch_jax.folders.model_dir import ModelDir
from switch_jax.monitoring.loss_watch import DivergenceError, LossWatch
from switch_jax.monitoring.profiling import Profiler
from switch_jax.training import opening, progression, together
from switch_jax.training.loop import train
from switch_jax.training.together import train_together
from tests.training.loop_test import MODEL, TASK, run_of, threads

NOISY = dataclasses.replace(MODEL, dropout_rate=0.1)
NOT_COMPARED = {'steps_per_second', 'target_tokens_per_second', 'input_wait_fraction', 'host_memory_gib'}


def run_in(folder, seed=1, rate=1.0, steps=4):
  run = run_of(folder, steps=steps, model=NOISY, optimizer=config.OptimizerConfig(learning_rate=rate))
  return dataclasses.replace(run, random_seed=seed)


@pytest.fixture(scope='module', autouse=True)
def surroundings(tmp_path_factory):
  """The tests have eight devices, and runs are trained together on one; compiled once, and no pictures are drawn."""
  with pytest.MonkeyPatch.context() as patch:
    for module in (opening, together):
      patch.setattr(module, 'make_layout', functools.partial(opening.make_layout, devices=jax.devices()[:1]))
    patch.setattr(progression, 'save_picture', lambda path, **_: path.touch())
    jax.config.update('jax_compilation_cache_dir', str(tmp_path_factory.mktemp('programs')))
    yield
    jax.config.update('jax_compilation_cache_dir', None)
    compilation_cache.reset_cache()


def until(step, function, *arguments):
  """Trains until SIGTERM comes after a step."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Profiler, 'after', lambda self, at, result: at == step and os.kill(os.getpid(), signal.SIGTERM))
    return function(*arguments)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """Returns a run that was trained alone, the folder as it was after two steps, and its result."""
  folder = tmp_path_factory.mktemp('alone')
  run = run_in(folder / 'run', rate=0.3)
  assert until(2, train, run).reason == 'SIGTERM'
  shutil.copytree(folder / 'run', folder / 'copy')
  return run, folder / 'copy', train(run, config_gin='# as written\n')


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  """Returns runs that were trained together for two steps, and their results. The first one diverges at once.

  The loss of its first step is taken for no number. The others have one seed.
  """
  folder, before, watches = tmp_path_factory.mktemp('together'), threads(), []
  runs = [run_in(folder / 'bad', seed=2), run_in(folder / 'a'), run_in(folder / 'b', rate=0.3)]
  check = LossWatch.check

  def see_nan(self, step, loss, grad_norm):
    if self not in watches:
      watches.append(self)
    check(self, step, math.nan if self is watches[0] else loss, grad_norm)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(LossWatch, 'check', see_nan)
    results = until(2, train_together, runs, ['# as written\n'] * 3)
  assert threads() <= before
  return runs, results


def test_a_signal_saves_all_and_a_divergence_ends_one(stopped):
  runs, results = stopped
  assert isinstance(results[0], DivergenceError)
  assert 'the loss of step 1 is nan' in str(results[0])
  assert [(result.reason, result.step, int(result.state.step)) for result in results[1:]] == [('SIGTERM', 2, 2)] * 2
  assert [CheckpointStore(run.model_dir).steps() for run in runs] == [[], [2], [2]]


def same_lines(one, other, name):
  """Compares the lines of metrics of two folders, times apart."""
  left, right = read_metrics(one / name), read_metrics(other / name)
  assert [line['step'] for line in left] == [line['step'] for line in right]
  for a, b in zip(left, right, strict=True):
    assert a.keys() - NOT_COMPARED == b.keys() - NOT_COMPARED
    for key in a.keys() - NOT_COMPARED:
      np.testing.assert_allclose(a[key], b[key], rtol=1e-5 if 'loss' in key else 1e-3, atol=1e-5, err_msg=key)


def same_result(one, other):
  assert (one.reason, one.step, int(one.state.step)) == (other.reason, other.step, int(other.state.step))
  for place in ('train', f'eval/{TASK}'):
    same_lines(one.model_dir.path / place, other.model_dir.path / place, 'metrics.jsonl')
  left, right = (jax.device_get(result.state) for result in (one, other))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), left, right)
  assert one.facts.target_tokens == other.facts.target_tokens


def test_two_steps_together_and_two_alone_are_as_four_alone(alone, stopped):
  same_result(alone[2], train(stopped[0][2]))


def test_two_steps_alone_and_two_together_are_as_four_alone(alone, stopped):
  """Files included. What has finished before is left alone."""
  run, copy, result = alone
  finished, other = train_together(
    [dataclasses.replace(run, model_dir=str(copy)), stopped[0][1]], ['# as written\n'] * 2
  )
  same_result(result, finished)
  assert (other.reason, other.step) == ('finished', 4)
  names = lambda folder: {  # noqa: E731
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if not path.name.startswith('events.') and 'checkpoints' not in str(path)
  }
  assert names(copy) == names(pathlib.Path(run.model_dir))
  assert ModelDir(copy).config_gin.read_text() == '# as written\n'
  left, right = (json.loads((ModelDir(folder).step(4) / 'config.json').read_text()) for folder in (run.model_dir, copy))
  for record in (left, right):
    record['run'].pop('model_dir')
  assert left == right
  again = train_together([dataclasses.replace(run, model_dir=str(copy)), run], [''] * 2)
  assert [result.reason for result in again] == ['nothing to do'] * 2
  assert again[0].held_out == finished.held_out


def test_runs_at_different_steps(alone, tmp_path):
  runs = [dataclasses.replace(alone[0], train_steps=6), run_in(tmp_path / 'new', steps=6)]
  with pytest.raises(config.ConfigError, match=r'at the same step, .*/run at 4, .*/new at 0\. Train those'):
    train_together(runs, [''] * 2)


def test_several_devices(tmp_path, monkeypatch):
  for module in (opening, together):
    monkeypatch.setattr(module, 'make_layout', getattr(opening.make_layout, 'func', opening.make_layout))
  with pytest.raises(config.ConfigError, match='on one device, and there are 8'):
    train_together([run_in(tmp_path / 'a'), run_in(tmp_path / 'b')], [''] * 2)
