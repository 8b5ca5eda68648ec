"""Tables of a report as plain values: what the runs came to, and held-out losses by group."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from switch_jax.report.distillation import final_loss
from switch_jax.report.runs import Line, Run
from switch_jax.report.series import Series, Spread, spread
from switch_jax.report.timeline import column, seconds_per_step

_GROUP_LOSS, _GROUP_TOKENS = 'cross_ent_loss/', 'target_tokens/'
# What a run is like at its end is read from this share of its lines.
_LAST_LINES = 0.1


def last_step(run: Run) -> int:
  """Returns the last step of a run that any line tells of."""
  return max(line['step'] for line in (*run.train, *run.held_out))


def furthest(series: Series) -> list[Run]:
  """Returns the runs of a series whose held-out loss is known at its latest evaluation; others are not finished."""
  steps = {run.name: run.held_out[-1]['step'] for run in series.runs if run.held_out}
  return [run for run in series.runs if steps.get(run.name, -1) == max(steps.values(), default=0)]


def at_the_end(run: Run, name: str) -> float:
  """Returns the mean of a metric over the last tenth of the lines of training."""
  return _mean(column(run.train[-max(1, math.ceil(_LAST_LINES * len(run.train))) :], name))


def _mean(values: np.ndarray) -> float:
  known = values[np.isfinite(values)]
  return float(known.mean()) if len(known) else math.nan


def _median(values: np.ndarray) -> float:
  known = values[np.isfinite(values)]
  return float(np.median(known)) if len(known) else math.nan


def input_wait(lines: Sequence[Line]) -> float:
  """Returns the share of the time of all steps after the first that was spent waiting for input."""
  steps = np.diff(column(lines, 'step'), prepend=0.0)
  seconds, share = steps * seconds_per_step(lines), column(lines, 'input_wait_fraction')
  known = np.isfinite(seconds) & np.isfinite(share)
  return float(np.sum((seconds * share)[known]) / np.sum(seconds[known])) if known.any() else math.nan


def summarize(series: Series) -> dict[str, Any]:
  """Returns one row of the table of results: plain values and `Spread`s."""
  over = lambda value: spread([value(run) for run in series.runs])  # noqa: E731
  first = series.runs[0]
  ends = furthest(series)
  done = [last_step(run) for run in series.runs]
  return {
    'parameters': first.parameters,
    'experts': first.moe.get('num_experts'),
    'router': first.moe.get('router'),
    'steps': (min(done), max(done), first.settings.get('train_steps')),
    'evaluated_at': ends[0].held_out[-1]['step'] if ends else None,
    'held_out': spread([final_loss(run) for run in ends]),
    'training': over(lambda run: at_the_end(run, 'cross_ent_loss')),
    'seconds_per_step': over(lambda run: _median(seconds_per_step(run.train))),
    'input_wait': over(lambda run: input_wait(run.train)),
    'dropped': over(lambda run: at_the_end(run, 'fraction_dropped')),
  }


def group_losses(series: Sequence[Series]) -> list[tuple[str, float, list[Spread]]]:
  """Returns held-out losses by group after the last evaluation.

  Returns:
    By group its name, its held-out target tokens (the mean over runs), and the loss of each series.
  """
  ends = [[run.held_out[-1] for run in furthest(s)] for s in series]
  names = sorted({name.removeprefix(_GROUP_LOSS) for lines in ends for line in lines for name in line
                  if name.startswith(_GROUP_LOSS)})  # fmt: skip
  every = [line for lines in ends for line in lines]
  value: Callable[[Line, str], float] = lambda line, name: line.get(name, math.nan)  # noqa: E731
  return [
    (
      group,
      _mean(np.array([value(line, _GROUP_TOKENS + group) for line in every])),
      [spread([value(line, _GROUP_LOSS + group) for line in lines]) for lines in ends],
    )
    for group in names
  ]
