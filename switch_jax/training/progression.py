"""What happens around the steps: reports, checkpoints, evaluations, the end. Of one run alone, or several in step."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import jax

from switch_jax import data
from switch_jax.config import ConfigError, suggest
from switch_jax.folders.claim import Claim
from switch_jax.folders.model_dir import METRICS_FILE, ModelDir
from switch_jax.monitoring.interruption import Interruption, Signal
from switch_jax.monitoring.loss_watch import DivergenceError
from switch_jax.monitoring.picture import save_picture
from switch_jax.monitoring.summary import RunFacts
from switch_jax.parallel.hosts import LONG_WORK, exchange
from switch_jax.training.evaluation import EvaluationResult, evaluate
from switch_jax.training.opening import Opened
from switch_jax.training.state import TrainState

Reason = Literal['finished', 'nothing to do'] | Signal


class Models(Protocol):
  """The models of some runs, trained step by step; what is returned as a sequence has the order of the runs."""

  def advance(self) -> Sequence[Mapping[str, Any]]:
    """Makes a step of each; returns the metrics, which need not have been computed yet."""

  def state(self, number: int) -> TrainState:
    """Returns the state of one of them."""

  def evaluate(self) -> Sequence[EvaluationResult]:
    """Measures the held-out loss of each."""


class OneModel(Models):
  """The model of a run that is trained alone."""

  def __init__(self, opened: Opened):
    self._opened, self._state = opened, opened.state

  def advance(self) -> Sequence[Mapping[str, Any]]:
    """See `Models`."""
    self._state, metrics = self._opened.train_step(self._state, *next(self._opened.batches))
    return [metrics]

  def state(self, number: int) -> TrainState:
    """See `Models`."""
    del number
    return self._state

  def evaluate(self) -> Sequence[EvaluationResult]:
    """See `Models`."""
    return [evaluate(self._opened.eval_step, self._state.params, self._opened.held_out)]


class Member:
  """One of the runs that advance in step, or the only one.

  Attributes:
    number: its place among them.
    opened: the run.
    step: updates made.
    error: what ended it before the others.
  """

  def __init__(self, number: int, opened: Opened, claim: Claim):
    self.number, self.opened, self.step = number, opened, opened.first_step
    self.error: DivergenceError | None = None
    self._claim = claim
    self._evaluation: EvaluationResult | None = None

  @contextlib.contextmanager
  def ends_alone(self) -> Iterator[None]:
    """A context in which a divergence ends this run and leaves the others alone."""
    try:
      yield
    except DivergenceError as error:
      self.error = error

  def evaluation_is_missing(self) -> bool:
    """Whether the process that saved this step was stopped before it had evaluated it. All hosts get one answer."""
    if not _is_evaluated(self.opened, self.step):
      return False
    return bool(exchange('list of evaluations', self.step not in self.opened.evaluated, LONG_WORK)[0])

  def report(self, metrics: Mapping[str, Any]) -> None:
    """Takes the metrics of the step just dispatched, and reports those of the one before."""
    self.step += 1
    self._claim.check()
    self.opened.reporter.add(self.step, dict(metrics))

  def save(self, state: TrainState) -> None:
    """Saves state and data position if the step is sound; the arrays are written in the background."""
    opened, reporter = self.opened, self.opened.reporter
    reporter.stop_clock()  # reports this step, and ends the run here if its loss or gradient is not finite
    if not bool(opened.are_finite(state.params)):
      raise DivergenceError(f'parameters are not finite after step {self.step:,}, whose gradient was.', self.step)
    record = opened.record | {'target_tokens': reporter.target_tokens}
    opened.store.save(self.step, state, record, opened.source.save_position)
    reporter.resume_clock()

  def take_evaluation(self, result: EvaluationResult, models: Models) -> None:
    """Writes what was measured on held-out data, and measures the metrics of the task if the run wants them."""
    opened, metrics, measured = self.opened, result.metrics, {}
    self._evaluation = result
    if opened.task_metrics:
      measured = opened.task_metrics(models.state(self.number).params, self.step)
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

  def _score(self, metrics: Mapping[str, float]) -> None:
    """Hands an evaluation to the checkpoint policy."""
    policy = self.opened.run.checkpoint
    if policy.keep_best and policy.best_metric not in metrics:
      raise ConfigError(
        f'CheckpointConfig.best_metric is {policy.best_metric!r}, which an evaluation does not give; it gives '
        f'{", ".join(sorted(name for name in metrics if "/" not in name))}.{suggest(policy.best_metric, metrics)}'
      )
    self.opened.store.scores[self.step] = metrics.get(policy.best_metric, math.nan)

  def settle(self) -> None:
    """Waits until everything so far is written."""
    self.opened.reporter.flush()
    self.opened.store.wait()  # a second signal does not reach what is being written
    self.opened.flush()

  def sum_up(self, models: Models, began: float) -> RunFacts | None:
    """Draws the picture of a finished run and returns its summary, on the first host."""
    run, opened = self.opened.run, self.opened
    if self._evaluation is None:
      _evaluate([self], models)
    result = self._evaluation
    if jax.process_index() != 0 or result is None:
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


def run_to_end(members: Sequence[Member], models: Models) -> Reason:
  """Makes the steps of all members, which are at the same one; returns why it ended.

  One that diverges has its `error` then, and takes no part any more.
  """
  opened, step = members[0].opened, members[0].step
  run, progress, profiler = opened.run, opened.progress, opened.profiler
  if step:
    progress.note(f'continuing from the checkpoint of step {step:,}')
  _evaluate([member for member in members if member.evaluation_is_missing()], models)
  progress.note('compiling the training step')
  progress.start(step, run.train_steps)
  stop: Signal | None = None
  with Interruption() as interruption:
    while step < run.train_steps and any(_going(members)):
      profiler.before(step + 1)
      metrics = models.advance()
      step += 1
      for member in _going(members):
        with member.ends_alone():
          member.report(metrics[member.number])
      profiler.after(step, metrics)
      stop = interruption.requested(step)
      last = step == run.train_steps
      if last or stop or step % run.checkpoint.period == 0:
        for member in _going(members):
          with member.ends_alone():
            member.save(models.state(member.number))
      if _is_evaluated(opened, step) and (last or not stop):
        _evaluate(list(_going(members)), models)
      if stop and not last:
        break
    for member in _going(members):
      with member.ends_alone():
        member.settle()
  progress.close()
  return stop if stop and step < run.train_steps else 'finished'


def _going(members: Sequence[Member]) -> Iterator[Member]:
  return (member for member in members if member.error is None)


def _is_evaluated(opened: Opened, step: int) -> bool:
  """Whether the held-out loss is measured after this step."""
  period, train_steps = opened.run.eval_period, opened.run.train_steps
  return step in (0, train_steps) or bool(period and step % period == 0)


def _evaluate(members: Sequence[Member], models: Models) -> None:
  """Measures the held-out loss of members and writes it."""
  for member in members:
    with member.ends_alone():
      member.opened.reporter.stop_clock()
  if not any(_going(members)):
    return
  first = members[0]
  if first.step == first.opened.first_step:
    first.opened.progress.note('evaluating before training')
  results = models.evaluate()
  for member in _going(members):
    member.take_evaluation(results[member.number], models)
