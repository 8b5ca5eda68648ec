"""When a step was done: target tokens and seconds of training since step 0, added up from the lines of a run."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Timeline:
  """Cumulated cost of training at the lines of `train/metrics.jsonl`, each float64 `[lines]`.

  Attributes:
    steps: of the lines.
    tokens: target tokens up to that step; NaN if no line tells.
    seconds: of training steps up to that step, without compilation, evaluation and saving; NaN if no line tells.
  """

  steps: np.ndarray
  tokens: np.ndarray
  seconds: np.ndarray

  def at(self, steps: np.ndarray) -> dict[str, np.ndarray]:
    """Returns `steps`, `tokens` and `seconds` at any steps, straight lines between those known, NaN beyond them."""
    known = np.concatenate([[0.0], self.steps])
    place = lambda values: np.interp(steps, known, np.concatenate([[0.0], values]), right=np.nan)  # noqa: E731
    return {'steps': np.asarray(steps, np.float64), 'tokens': place(self.tokens), 'seconds': place(self.seconds)}


def column(lines: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
  """Returns one metric of all lines, float64 `[lines]`; NaN where a line has none."""
  return np.array([line.get(name, np.nan) for line in lines], np.float64)


def seconds_per_step(lines: Sequence[Mapping[str, Any]]) -> np.ndarray:
  """Returns the time of a step at each line, float64 `[lines]`.

  NaN at the line of step 1, whose time is mostly compilation, and where a line has no speed.
  """
  speed = column(lines, 'steps_per_second')
  usable = (speed > 0) & (column(lines, 'step') > 1)
  return np.where(usable, 1 / np.where(usable, speed, 1.0), np.nan)


def tokens_per_step(lines: Sequence[Mapping[str, Any]]) -> np.ndarray:
  """Returns the mean target tokens of a step since the line before, float64 `[lines]`."""
  steps, tokens = column(lines, 'steps_per_second'), column(lines, 'target_tokens_per_second')
  usable = steps > 0
  return np.where(usable, tokens / np.where(usable, steps, 1.0), column(lines, 'target_tokens'))


def cumulate(lines: Sequence[Mapping[str, Any]]) -> Timeline:
  """Adds up what the lines say of the steps since the line before; where one says nothing, the median stands in."""
  steps = column(lines, 'step')
  since = np.diff(steps, prepend=0.0)
  add_up = lambda each: np.cumsum(since * _filled(each))  # noqa: E731
  return Timeline(steps, add_up(tokens_per_step(lines)), add_up(seconds_per_step(lines)))


def _filled(values: np.ndarray) -> np.ndarray:
  """Returns the values with their median in place of NaN; all NaN if nothing is known."""
  known = np.isfinite(values)
  return np.where(known, values, np.median(values[known])) if known.any() else values
