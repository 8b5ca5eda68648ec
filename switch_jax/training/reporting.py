"""Metrics of the steps on their way to files and screen, without stalling the next step."""

import time
from typing import Any

import jax

from switch_jax.config import RunConfig
from switch_jax.training.metric_files import MetricFiles
from switch_jax.training.progress import Progress


class Reporter:
  """Fetches the metrics of a step once the next one has been dispatched.

  Attributes:
    target_tokens: real target tokens of all steps reported so far; set it when a run is continued.

  Args:
    run: gives the log period.
    files: where lines are written.
    progress: what is shown.
    wait_seconds: returns the seconds that training has waited for input so far.
  """

  def __init__(self, run: RunConfig, files: MetricFiles, progress: Progress, wait_seconds):
    self._run, self._files, self._progress = run, files, progress
    self._wait_seconds = wait_seconds
    self._pending: tuple[int, dict[str, jax.Array]] | None = None
    self._tokens = self._seconds = self._steps = self._waited = 0.0
    self._mark: tuple[float, float] | None = None
    self.target_tokens = 0

  def resume_clock(self) -> None:
    """Starts to count time; what lies before (compilation, evaluation, saving) is left out of the speeds."""
    self._mark = (time.perf_counter(), self._wait_seconds())

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of the step just dispatched and reports the one before it."""
    self.flush()
    self._pending = (step, metrics)

  def flush(self) -> None:
    """Reports the last step given to `add`, waiting for it if it still runs."""
    if self._pending is None:
      return
    (step, metrics), self._pending = self._pending, None
    due = step % self._run.log_period == 0 or step in (1, self._run.train_steps)
    values: dict[str, Any] = jax.device_get(metrics if due else {k: metrics[k] for k in ('loss', 'target_tokens')})
    self.target_tokens += int(values['target_tokens'])
    self._count(float(values['target_tokens']))
    speed = self._tokens / self._seconds if self._seconds else None
    if due:
      if self._seconds:
        values['steps_per_second'] = self._steps / self._seconds
        values['target_tokens_per_second'] = speed
        values['input_wait_fraction'] = self._waited / self._seconds
      self._files.write(step, values)
    self._progress.update(step, loss=float(values['loss']), tokens_per_second=speed)
    if due:
      self._tokens = self._seconds = self._steps = self._waited = 0.0

  def _count(self, tokens: float) -> None:
    """Adds the time since the last step to the speeds, if the clock runs."""
    now, waited = time.perf_counter(), self._wait_seconds()
    if self._mark is not None:
      self._seconds += now - self._mark[0]
      self._waited += waited - self._mark[1]
      self._steps += 1
      self._tokens += tokens
    self._mark = (now, waited)

  def stop_clock(self) -> None:
    """Reports what is pending and stops counting time until `resume_clock`."""
    self.flush()
    self._mark = None
