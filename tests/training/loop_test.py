"""`train` as a function: what it takes, what it gives, and that it leaves nothing running."""

import dataclasses
import math
import os
import pathlib
import re
import signal
import threading

import jax
import numpy as np
import pytest

from switch_jax import config
from switch_jax.checkpoints import CheckpointStore
from switch_jax.folders.metric_lines import read_metrics
from switch_jax.monitoring.loss_watch import DivergenceError, LossWatch
from switch_jax.monitoring.profiling import Profiler
from switch_jax.training.loop import finished_step, train

TASK = 'docstrings_span_corruption'
MODEL = config.ModelConfig(
  vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1,
  moe=config.MoeConfig(num_experts=2, encoder_layers=1, decoder_layers=()),
)  # fmt: skip


def run_of(folder, steps=4, model=MODEL, **fields):
  data = config.DataConfig(
    mixture_or_task_name=TASK, task_module='switch_jax.tasks.docstrings', feature_lengths={'inputs': 32, 'targets': 12},
    batch_size=8,
  )  # fmt: skip
  return config.RunConfig(
    model_dir=str(folder), model=model, data=data, train_steps=steps, random_seed=0, eval_period=None, eval_steps=1,
    log_period=2, checkpoint=config.CheckpointConfig(period=3), **fields,
  )  # fmt: skip


def threads():
  """Returns the threads that run; Orbax's event loops leave idle ones to the garbage collector."""
  return {thread for thread in threading.enumerate() if not thread.name.startswith('asyncio_')}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Returns a run that has finished, and its result."""
  run = run_of(tmp_path_factory.mktemp('run'))
  return run, train(run, config_gin='# as written\n')


def test_the_result_of_a_finished_run(finished):
  run, result = finished
  folder = result.model_dir
  assert (result.reason, result.step, int(result.state.step)) == ('finished', 4, 4)
  assert str(folder.path) == run.model_dir
  assert result.metrics == read_metrics(folder.train / 'metrics.jsonl')[-1]
  assert result.held_out == read_metrics(folder.held_out(TASK) / 'metrics.jsonl')[-1]
  assert result.metrics['step'] == result.held_out['step'] == 4
  assert result.facts.held_out_after == result.held_out['cross_ent_loss_text']
  assert result.facts.target_tokens > 0
  assert folder.config_gin.read_text() == '# as written\n'
  assert folder.summary.exists()


def test_the_state_is_what_the_checkpoint_holds(finished):
  run, result = finished
  store = CheckpointStore(run.model_dir)
  assert store.steps() == [3, 4]
  jax.tree.map(np.testing.assert_array_equal, store.restore_params(4), jax.device_get(result.state.params))
  store.close()


def test_a_model_without_an_encoder_goes_on_where_it_was(tmp_path):
  """Inputs and targets in one row, a prefix; stopped and continued it is the run left alone."""
  moe = config.MoeConfig(num_experts=2, encoder_layers=1, decoder_layers=1)
  model = dataclasses.replace(
    MODEL, num_encoder_layers=0, moe=moe, dropout_rate=0.1, prefix_lm=True, positions='rotary', scan_layers=True
  )
  whole = train(run_of(tmp_path / 'whole', model=model))
  train(run_of(tmp_path / 'parts', steps=3, model=model))
  parts = train(run_of(tmp_path / 'parts', model=model))
  assert (parts.reason, parts.step) == ('finished', 4)
  jax.tree.map(np.testing.assert_array_equal, *(jax.device_get(result.state.params) for result in (parts, whole)))
  assert parts.held_out['cross_ent_loss_text'] == whole.held_out['cross_ent_loss_text']
  assert 0 < parts.facts.target_tokens == whole.facts.target_tokens < 4 * 8 * 12, 'of the targets alone'


def snapshot(folder):
  return {path: path.stat().st_mtime_ns for path in pathlib.Path(folder).rglob('*')}


def test_nothing_to_do(finished):
  run, result = finished
  before, running = snapshot(run.model_dir), threads()
  assert finished_step(run) == 4
  again = train(run)
  assert (again.reason, again.step, again.facts) == ('nothing to do', 4, None)
  assert (again.metrics, again.held_out) == (result.metrics, result.held_out)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.state), jax.device_get(result.state))
  assert snapshot(run.model_dir) == before
  assert threads() <= running


def test_what_is_not_finished(finished, tmp_path):
  run, _ = finished
  assert finished_step(dataclasses.replace(run, train_steps=5)) is None
  assert finished_step(dataclasses.replace(run, train_steps=2)) == 4
  assert finished_step(run_of(tmp_path)) is None


def refused(run, match, error=config.ConfigError):
  """Trains in vain; no thread may be left."""
  before = threads()
  with pytest.raises(error, match=match):
    train(run)
  assert threads() <= before


def test_a_vocabulary_that_is_too_large(finished, tmp_path):
  refused(run_of(tmp_path, model=dataclasses.replace(MODEL, vocab_size=256)), 'vocab_size is 256 and the vocabulary')
  assert not (tmp_path / 'train').exists()


def test_a_folder_of_another_run(finished):
  run, _ = finished
  before = snapshot(run.model_dir)
  refused(dataclasses.replace(run, random_seed=1), 'random_seed')
  assert snapshot(run.model_dir) == before


def test_a_run_that_diverges_names_its_last_good_checkpoint(finished, tmp_path, monkeypatch):
  """The loss of step 5 is taken for no number. Everything is closed then, as after a run that finishes."""
  check = LossWatch.check

  def see_nan(self, step, loss, grad_norm):
    check(self, step, math.nan if step == 5 else loss, grad_norm)

  monkeypatch.setattr(LossWatch, 'check', see_nan)
  good = re.escape(str(tmp_path / 'checkpoints' / '3'))
  message = (
    rf'the loss of step 5 is nan.* The last good checkpoint is step 3, {good}\. .*INITIAL_CHECKPOINT_PATH={good}'
  )
  refused(run_of(tmp_path, steps=9), message, DivergenceError)
  assert [line['step'] for line in read_metrics(tmp_path / 'train' / 'metrics.jsonl')] == [1, 2, 4]


def test_a_second_signal_does_not_reach_what_is_being_saved(tmp_path, monkeypatch):
  """One SIGTERM ends the loop after the first step, another comes while its checkpoint is written."""
  wait = CheckpointStore.wait
  sent = []

  def terminate():
    sent.append(signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)

  def wait_longer(store):
    if len(sent) == 1 and store.steps() == []:
      terminate()
    wait(store)

  monkeypatch.setattr(Profiler, 'after', lambda profiler, step, result: terminate() if step == 1 else None)
  monkeypatch.setattr(CheckpointStore, 'wait', wait_longer)
  result = train(run_of(tmp_path))
  assert (result.reason, result.step, len(sent)) == ('SIGTERM', 1, 2)
  assert CheckpointStore(tmp_path).steps() == [1]


def test_what_cannot_be_read_is_not_called_unwritable(tmp_path, monkeypatch):
  def open_training(*arguments):
    raise OSError(5, 'Input/output error', '/corpora/part-00001.txt')

  monkeypatch.setattr('switch_jax.data.open_training', open_training, raising=False)
  refused(run_of(tmp_path), 'Input/output error', OSError)
