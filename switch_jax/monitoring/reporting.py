"""Metrics of the steps on their way to files and screen, without stalling the next step."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from switch_jax.config import RunConfig
from switch_jax.monitoring.loss_watch import LossWatch
from switch_jax.monitoring.memory import memory_metrics
from switch_jax.monitoring.metric_files import MetricFiles
from switch_jax.monitoring.progress import Progress
from switch_jax.monitoring.router_health import RouterHealth, heat_map
from switch_jax.monitoring.summary import layer_key

# What is fetched in every step, and not only in those that are written: a few numbers, and the routers' loads.
_EVERY_STEP = ('loss', 'grad_norm', 'target_tokens', 'routers')
# Histograms and pictures are drawn at lines that are at least so many steps apart.
_STEPS_BETWEEN_PICTURES = 100


class Reporter:
  """Fetches the metrics of a step once the next one has been dispatched.

  Attributes:
    target_tokens: real target tokens of all steps reported so far.

  Args:
    run: gives the log period.
    files: where lines are written.
    progress: what is shown.
    wait_seconds: returns the seconds that training has waited for input so far.
    device: the one whose memory is reported.
    target_tokens: of the steps before, where a run is continued.
  """

  def __init__(
    self,
    run: RunConfig,
    files: MetricFiles,
    progress: Progress,
    wait_seconds: Callable[[], float],
    device: jax.Device,
    target_tokens: int = 0,
  ):
    self._run, self._files, self._progress = run, files, progress
    self._wait_seconds, self._device = wait_seconds, device
    self._pending: tuple[int, dict[str, Any]] | None = None
    self._watch = LossWatch(run.health)
    self._health: RouterHealth | None = None
    self._layers: list[str] = []
    self._drawn = files.last_expert_step()  # a resumed run draws at the steps at which one left alone does
    self._tokens = self._seconds = self._steps = self._waited = 0.0
    self._mark: tuple[float, float] | None = None
    self.target_tokens = target_tokens

  def resume_clock(self) -> None:
    """Starts to count time; what lies before (compilation, evaluation, saving) is left out of the speeds."""
    self._mark = (time.perf_counter(), self._wait_seconds())

  def add(self, step: int, metrics: dict[str, Any]) -> None:
    """Takes the metrics of the step just dispatched and reports the one before it.

    Raises:
      DivergenceError: the one before it shows that it is not worth going on.
    """
    if not self._layers:
      self._layers = sorted(name.partition('/')[2] for name in metrics if name.startswith('fraction_dropped/'))
    wanted = metrics if self._is_due(step) else {k: metrics[k] for k in _EVERY_STEP if k in metrics}
    for value in jax.tree.leaves(wanted):
      value.copy_to_host_async()  # they travel as soon as the step is done, while the next one runs
    self.flush()
    self._pending = (step, wanted)

  def _is_due(self, step: int) -> bool:
    return step % self._run.log_period == 0 or step in (1, self._run.train_steps)

  def flush(self) -> None:
    """Reports the last step given to `add`, waiting for it if it still runs.

    Raises:
      DivergenceError: as `add`, about this step; its line has been written.
    """
    if self._pending is None:
      return
    (step, metrics), self._pending = self._pending, None
    due = self._is_due(step)
    values: dict[str, Any] = jax.device_get(metrics)
    routers = values.pop('routers', None)
    self.target_tokens += int(values['target_tokens'])
    self._count(float(values['target_tokens']))
    speed = self._tokens / self._seconds if self._seconds else None
    if due:
      if self._seconds:
        values['steps_per_second'] = self._steps / self._seconds
        values['target_tokens_per_second'] = speed
        values['input_wait_fraction'] = self._waited / self._seconds
      self._files.write(step, values | memory_metrics(self._device))
    self._progress.update(step, loss=float(values['loss']), tokens_per_second=speed)
    if due:
      self._tokens = self._seconds = self._steps = self._waited = 0.0
    if routers is not None:
      self._report_routers(step, routers, due)
    self._watch.check(step, float(values['loss']), float(values['grad_norm']))

  def _report_routers(self, step: int, routers: dict[str, np.ndarray], due: bool) -> None:
    """Warns about routers, and draws their loads now and then."""
    if self._health is None:
      self._health = RouterHealth(self._run.model.experts, self._layers, self._run.health.window)
    for warning in self._health.add(step, routers):
      self._progress.note(warning)
    if due and (self._drawn is None or step - self._drawn >= _STEPS_BETWEEN_PICTURES or step == self._run.train_steps):
      self._drawn = step
      order = sorted(range(len(self._layers)), key=lambda i: layer_key(self._layers[i]))
      loads = routers['expert_tokens'][order]
      shares = loads / np.maximum(loads.mean(axis=1, keepdims=True), 1e-9)
      histograms = {f'expert_load/{self._layers[i]}': shares[row] for row, i in enumerate(order)}
      self._files.write_pictures(step, histograms, {'expert_load': heat_map(loads)})
      self._files.write_expert_tokens(step, {self._layers[i]: loads[row] for row, i in enumerate(order)})

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
