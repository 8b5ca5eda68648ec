"""The training run: open, loop, evaluate, save, sum up. Takes a configuration and gives a result; reads top down."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from switch_jax import data
from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import ConfigError, RunConfig, first_line, suggest
from switch_jax.folders.claim import Claim
from switch_jax.folders.model_dir import METRICS_FILE, ModelDir
from switch_jax.folders.remote import is_storage_error
from switch_jax.monitoring.interruption import Interruption, Signal
from switch_jax.monitoring.loss_watch import DivergenceError
from switch_jax.monitoring.picture import save_picture
from switch_jax.monitoring.profiling import Window
from switch_jax.monitoring.summary import RunFacts
from switch_jax.training.evaluation import EvaluationResult, evaluate
from switch_jax.training.opening import Opened, open_run, open_store, record_beginning, restore_state
from switch_jax.training.state import TrainState

Reason = Literal['finished', 'nothing to do'] | Signal


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
  """What training came to.

  Attributes:
    state: parameters and optimizer state on the mesh, at `step`; saved in `model_dir.step(step)` too.
    step: updates made, those of earlier processes included.
    metrics: the last line of `train/metrics.jsonl`.
    held_out: the last line of the held-out metrics; losses in nats per target token. Empty before the first.
    reason: why it ended: all steps are done (`finished`), or were before (`nothing to do`); or the signal after which
      it stopped (`SIGTERM`, `SIGINT`), to be continued by training again.
    model_dir: where things lie.
    facts: the summary of a run that has finished here, on the first host; `monitoring.summary.summarize` prints it.
  """

  state: TrainState
  step: int
  metrics: Mapping[str, float]
  held_out: Mapping[str, float]
  reason: Reason
  model_dir: ModelDir
  facts: RunFacts | None = None


def train(run: RunConfig, *, config_gin: str = '', profile: bool | Sequence[Window] = False) -> TrainResult:
  """Trains until `run.train_steps`, continuing from the newest checkpoint of the MODEL_DIR.

  Everything that was opened is closed again, threads included, however it ends.

  Args:
    run: the whole configuration.
    config_gin: the operative gin text, kept as `config.gin` in the MODEL_DIR for people to read.
    profile: steps to write profiles of for TensorBoard under `MODEL_DIR/profile`: first and last one of each; True
      for five steps a little after the beginning.

  Returns:
    The result, also where a first SIGTERM or Ctrl-C has ended it: its step is saved.

  Raises:
    ConfigError: the run cannot work as configured, the MODEL_DIR belongs to another one or to a living process, a
      checkpoint or metrics cannot be written; or (`DivergenceError`) the loss is no number or has diverged.
    KeyboardInterrupt: a second Ctrl-C, which does not wait for the step.
  """
  began = time.perf_counter()
  with contextlib.ExitStack() as stack:
    # First, so that it hears what all others say when they close.
    storage = stack.enter_context(_Storage(run.model_dir))
    store, claim = open_store(run, stack)
    if (step := _step_at_the_end(run, store)) is not None:
      return _result(run, restore_state(run, store, step), step, 'nothing to do')
    opened = open_run(run, store, profile, stack)
    training = _Training(opened, claim)
    storage.is_written_to = True
    try:
      if jax.process_index() == 0:
        record_beginning(run)
        if config_gin:
          ModelDir(run.model_dir).config_gin.write_text(config_gin)
      reason = training.run_to_end()
      facts = training.sum_up(began) if reason == 'finished' else None
      opened.flush()
    except DivergenceError as error:
      raise _explained(error, store) from None
  return _result(run, training.state, training.step, reason, facts)


class _Storage(contextlib.AbstractContextManager):
  """A context in which what a disk or store says of a MODEL_DIR is the user's error, once it is written to."""

  def __init__(self, model_dir: str):
    self._model_dir, self.is_written_to = model_dir, False

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
  ) -> None:
    if self.is_written_to and isinstance(error, Exception) and is_storage_error(error):
      raise ConfigError(
        f'{self._model_dir} can no longer be written to: {_cause(error)}. See to the cause (free space and rights on '
        'the disk, say) and run the same command again to continue from the newest checkpoint.'
      ) from error


def _cause(error: Exception) -> str:
  return str(error) if isinstance(error, OSError) else first_line(error)


def finished_step(run: RunConfig) -> int | None:
  """Returns the newest step of a MODEL_DIR that has all steps of this run and its last evaluation; None otherwise.

  Nothing is written, whoever owns the folder.

  Raises:
    ConfigError: the MODEL_DIR belongs to another run.
  """
  store = CheckpointStore(run.model_dir)
  if not (steps := store.steps()) or steps[-1] < run.train_steps:
    return None
  store.check_identity(run.identity())
  return _step_at_the_end(run, store)


def _step_at_the_end(run: RunConfig, store: CheckpointStore) -> int | None:
  """As `finished_step`; a run that was killed during its last evaluation still needs it."""
  step, folder = store.latest_whole_step() or 0, ModelDir(run.model_dir)
  if step != run.train_steps:
    return step if step > run.train_steps else None
  lines = folder.read_held_out(run.data.mixture_or_task_name)
  is_summed_up = bool(lines) and lines[-1]['step'] == step and folder.summary.exists()
  return step if is_summed_up else None


def _result(run: RunConfig, state: TrainState, step: int, reason: Reason, facts: RunFacts | None = None) -> TrainResult:
  folder = ModelDir(run.model_dir)
  metrics, held_out = folder.read_train(), folder.read_held_out(run.data.mixture_or_task_name)
  return TrainResult(
    state=state,
    step=step,
    metrics=metrics[-1] if metrics else {},
    held_out=held_out[-1] if held_out else {},
    reason=reason,
    model_dir=folder,
    facts=facts,
  )


def _explained(error: DivergenceError, store: CheckpointStore) -> DivergenceError:
  """Adds to an error what can be done about it."""
  with contextlib.suppress(ConfigError):  # the older checkpoints are what is asked for
    store.wait()
  good = [step for step in store.steps() if step < error.began]
  where = 'No checkpoint was saved before it.'
  if good:
    where = f'The last good checkpoint is step {good[-1]:,}, {store.path(good[-1])}.'
  return DivergenceError(
    f'{error} {where} The same command would come to the same point again: begin another --gin.MODEL_DIR with other '
    'settings (a lower LEARNING_RATE, config.OptimizerConfig.max_grad_norm=1.0, a longer warm-up)'
    + (f' and --gin.INITIAL_CHECKPOINT_PATH={store.path(good[-1])}.' if good else '.'),
    error.began,
  )


class _Training:
  """The loop over the steps of an opened run.

  Attributes:
    state: after `step` updates.
    step: updates made.
  """

  def __init__(self, opened: Opened, claim: Claim):
    self._claim = claim
    self._opened, self.state, self.step = opened, opened.state, opened.first_step
    self._evaluation: EvaluationResult | None = None

  def run_to_end(self) -> Reason:
    """Makes the steps; returns why it ended."""
    opened, run = self._opened, self._opened.run
    progress, reporter, profiler = opened.progress, opened.reporter, opened.profiler
    if self.step:
      progress.note(f'continuing from the checkpoint of step {self.step:,}')
    if self._evaluation_is_missing():
      self._evaluate()
    progress.note('compiling the training step')
    progress.start(self.step, run.train_steps)
    stop: Signal | None = None
    with Interruption() as interruption:
      while self.step < run.train_steps:
        profiler.before(self.step + 1)
        self.state, metrics = opened.train_step(self.state, *next(opened.batches))
        self.step += 1
        self._claim.check()
        reporter.add(self.step, metrics)
        profiler.after(self.step, metrics)
        stop = interruption.requested(self.step)
        last = self.step == run.train_steps
        if last or stop or self.step % run.checkpoint.period == 0:
          self._save()
        if self._is_evaluated() and (last or not stop):
          self._evaluate()
        if stop and not last:
          break
      reporter.flush()
      opened.store.wait()  # a second signal does not reach what is being written
      opened.flush()
    progress.close()
    return stop if stop and self.step < run.train_steps else 'finished'

  def _is_evaluated(self) -> bool:
    """Whether the held-out loss is measured after this step."""
    period, train_steps = self._opened.run.eval_period, self._opened.run.train_steps
    return self.step in (0, train_steps) or bool(period and self.step % period == 0)

  def _evaluation_is_missing(self) -> bool:
    """Whether the process that saved this step was stopped before it had evaluated it. All hosts get one answer."""
    if not self._is_evaluated():
      return False
    if jax.process_count() == 1:
      return self.step not in self._opened.evaluated
    return bool(multihost_utils.broadcast_one_to_all(np.int32(self.step not in self._opened.evaluated)))

  def _save(self) -> None:
    """Saves state and data position if the step is sound; the arrays are written in the background."""
    opened, reporter = self._opened, self._opened.reporter
    reporter.stop_clock()  # reports this step, and ends the run here if its loss or gradient is not finite
    if not bool(opened.are_finite(self.state.params)):
      raise DivergenceError(f'parameters are not finite after step {self.step:,}, whose gradient was.', self.step)
    record = opened.record | {'target_tokens': reporter.target_tokens}
    opened.store.save(self.step, self.state, record, opened.source.save_position)
    reporter.resume_clock()

  def _evaluate(self) -> EvaluationResult:
    """Measures the held-out loss and writes it."""
    opened = self._opened
    opened.reporter.stop_clock()
    if self.step == opened.first_step:
      opened.progress.note('evaluating before training')
    self._evaluation = evaluate(opened.eval_step, self.state.params, opened.held_out)
    metrics, measured = self._evaluation.metrics, {}
    if opened.task_metrics:
      measured = opened.task_metrics(self.state.params, self.step)
      metrics = metrics | {f'task_{name}': value for name, value in measured.items()}  # `accuracy` is that of tokens
    self._score(metrics)
    self._claim.check()
    opened.eval_files.write(self.step, metrics)
    loss, right = metrics['cross_ent_loss_text'], metrics.get('example_accuracy')
    opened.progress.note(
      f'held-out loss after {self.step:,} steps: {loss:.3f} nats per target token, sentinels left out'
      + ('' if right is None else f'; {right:.1%} of the targets are right')
      + ''.join(f'; {name} {value:.4g}' for name, value in measured.items() if '/' not in name)
    )
    opened.reporter.resume_clock()
    return self._evaluation

  def _score(self, metrics: Mapping[str, float]) -> None:
    """Hands an evaluation to the checkpoint policy."""
    policy = self._opened.run.checkpoint
    if policy.keep_best and policy.best_metric not in metrics:
      raise ConfigError(
        f'CheckpointConfig.best_metric is {policy.best_metric!r}, which an evaluation does not give; it gives '
        f'{", ".join(sorted(name for name in metrics if "/" not in name))}.{suggest(policy.best_metric, metrics)}'
      )
    self._opened.store.scores[self.step] = metrics.get(policy.best_metric, math.nan)

  def sum_up(self, began: float) -> RunFacts | None:
    """Draws the picture of a finished run and returns its summary, on the first host."""
    run, opened = self._opened.run, self._opened
    result = self._evaluation or self._evaluate()
    if jax.process_index() != 0:
      return None
    folder, task = ModelDir(run.model_dir), run.data.mixture_or_task_name
    train, held_out = folder.read_train(), folder.read_held_out(task)
    entropies = data.target_entropies(opened.held_out.on_host, opened.sentinels)
    save_picture(
      folder.summary,
      train=train,
      held_out=held_out,
      yardsticks={'unigram entropy': entropies.unigram, 'bigram entropy': entropies.bigram},
      expert_tokens=result.expert_tokens,
      title=f'{task}, {run.train_steps:,} steps',
      train_key='cross_ent_loss_text',
      held_out_key='cross_ent_loss_text',
    )
    return RunFacts(
      steps=run.train_steps,
      seconds=time.perf_counter() - began,
      target_tokens=opened.reporter.target_tokens,
      held_out_before=held_out[0]['cross_ent_loss_text'] if held_out[0]['step'] == 0 else None,
      held_out_after=result.metrics['cross_ent_loss_text'],
      unigram_entropy=entropies.unigram,
      bigram_entropy=entropies.bigram,
      fraction_dropped=train[-1].get('fraction_dropped'),
      expert_tokens=result.expert_tokens,
      files={
        'picture': str(folder.summary),
        'checkpoint': str(folder.step(run.train_steps)),
        'metrics': str(folder.train / METRICS_FILE),
        'TensorBoard': f'tensorboard --logdir {run.model_dir}',
      },
    )
