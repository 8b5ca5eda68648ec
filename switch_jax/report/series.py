"""Runs that differ in nothing but the seed are one series: a mean, a band, and the number of runs."""

import collections
import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from switch_jax.config import flatten
from switch_jax.folders.model_dir import split_step
from switch_jax.report.runs import Line, Run
from switch_jax.report.timeline import Timeline, column, cumulate

# Settings that name a checkpoint. Of a series each run may have its own, made by the run of the same seed.
_CHECKPOINTS = ('initial_checkpoint_path', 'distillation.teacher_path')
# Settings that say where something lies or is written, not what the run is.
_PLACES = ('model_dir', 'distillation.teacher_logits', 'trackers', 'tracker_project')
_SEED = re.compile(r'[-_,.+ /]*(?<![a-z])(?:random_)?seed[-_= ]?\d+|[-_,.+ ]s\d+$', re.IGNORECASE)
_PUNCTUATION = '-_,.+= /'
# Lines of a curve on the page; more are averaged in bins.
MAX_POINTS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """Runs of the same settings and different seeds, of one task.

  Attributes:
    label: what they are called.
    runs: by seed.
    settings: flat dictionary of dotted names, without the seed and places.
  """

  label: str
  runs: tuple[Run, ...]
  settings: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Spread:
  """Mean and spread of one number over runs.

  Attributes:
    mean: over the runs that have it; NaN if none has.
    low, high: mean less and plus the standard deviation; of two runs their minimum and maximum; NaN for fewer.
    count: how many have it.
  """

  mean: float
  low: float
  high: float
  count: int

  @property
  def half(self) -> float:
    """Half the width of the band: the standard deviation of three or more runs."""
    return (self.high - self.low) / 2


def spread(values: Sequence[float]) -> Spread:
  """Returns mean and spread of the numbers that are finite."""
  known = np.array([v for v in values if v is not None and math.isfinite(v)], np.float64)
  if not len(known):
    return Spread(math.nan, math.nan, math.nan, 0)
  mean = float(known.mean())
  if len(known) == 1:
    return Spread(mean, math.nan, math.nan, 1)
  if len(known) == 2:
    return Spread(mean, float(known.min()), float(known.max()), 2)
  deviation = float(known.std(ddof=1))
  return Spread(mean, mean - deviation, mean + deviation, len(known))


def comparable_settings(run: Run, key_of_path: Callable[[str], str | None]) -> dict[str, Any]:
  """Returns the settings by which runs belong together, flat, without the seed and without places.

  Args:
    run: the run.
    key_of_path: from the path of a checkpoint to what stands for the series of its run. If that is not known (None),
      it is the path without a seed in it.
  """
  # None is what a field has that a checkpoint of an older version does not know.
  settings = {name: value for name, value in flatten(run.settings).items() if value is not None}
  for name in ('random_seed', *_PLACES):
    settings.pop(name, None)
  for name in _CHECKPOINTS:
    if path := settings.get(name):
      settings[name] = key_of_path(path) or _SEED.sub('', path)
  return settings


def run_folder(path: str) -> str:
  """Returns the real MODEL_DIR of a path to it or to `MODEL_DIR/checkpoints/<step>`."""
  path = path if '://' in path else os.path.realpath(os.path.expanduser(path))
  return os.fspath(split_step(path)[0].path)


def group_by_task(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """Returns the runs by what their losses are measured on: task, vocabulary, and lengths of its features."""
  kinds: dict[tuple[str, str], list[Run]] = {}
  for run in runs:
    vocabulary = (run.record.get('vocabulary') or {}).get('digest')
    lengths = (run.settings.get('data') or {}).get('feature_lengths')
    kinds.setdefault((run.task, json.dumps([vocabulary, lengths], sort_keys=True)), []).append(run)
  several = {task for task, _ in kinds if sum(t == task for t, _ in kinds) > 1}
  named: dict[str, list[Run]] = {}
  for (task, _), members in kinds.items():
    title = f'{task}, {_data_in_words(members[0])}' if task in several else task
    named.setdefault(title if title not in named else f'{title} ({len(named)})', []).extend(members)
  return named


def _data_in_words(run: Run) -> str:
  lengths = (run.settings.get('data') or {}).get('feature_lengths') or {}
  size = (run.record.get('vocabulary') or {}).get('size')
  words = [f'{" / ".join(map(str, lengths.values()))} tokens'] if lengths else []
  return ', '.join([*words, f'vocabulary of {size}'] if size else words) or 'settings not recorded'


def make_series(runs: Sequence[Run], all_runs: Sequence[Run] = ()) -> list[Series]:
  """Groups the runs of one task into series, in the order in which they come.

  Args:
    runs: of one task.
    all_runs: runs whose checkpoints these may have begun with or learnt from.
  """
  homes = {run_folder(os.fspath(run.path)): run for run in (*all_runs, *runs)}

  def key_of(run: Run, depth: int = 8) -> str:
    if not run.settings:
      return f'not recorded: {run.path}'
    return json.dumps(comparable_settings(run, lambda path: key_of_path(path, depth)), sort_keys=True, default=str)

  def key_of_path(path: str, depth: int) -> str | None:
    run = homes.get(run_folder(path))
    return key_of(run, depth - 1) if run is not None and depth else None

  groups: dict[str, list[Run]] = {}
  seen: collections.Counter[tuple[str, ...]] = collections.Counter()
  for run in runs:
    key, checkpoints = key_of(run), flatten(run.settings)
    once = (key, repr(run.seed), *(repr(checkpoints.get(name)) for name in _CHECKPOINTS))
    seen[once] += 1  # the same seed again is no other seed: it begins another series
    groups.setdefault(f'{key} {seen[once]}', []).append(run)
  labels = dict(zip(groups, _labels(list(groups.values())), strict=True))

  def shown(path: str) -> str | None:
    """What stands for a checkpoint in a table: the series it is of, or its run."""
    run = homes.get(run_folder(path))
    return None if run is None else labels.get(f'{key_of(run)} 1') or run.name

  by_seed = lambda run: (run.seed is None, run.seed, run.name)  # noqa: E731
  return [
    Series(label=labels[key], runs=tuple(sorted(members, key=by_seed)), settings=comparable_settings(members[0], shown))
    for key, members in groups.items()
  ]


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
  """Returns a name for each series: that of its runs without the seed, or what they have in common."""
  labels: list[str] = []
  for members in groups:
    names = {_without_seed(run) for run in members}
    label = names.pop() if len(names) == 1 else _common(sorted(names))
    count = sum(other == label or other.startswith(f'{label} (') for other in labels)
    labels.append(f'{label} ({count + 1})' if count else label)
  return labels


def _without_seed(run: Run) -> str:
  return _SEED.sub('', run.name).strip(_PUNCTUATION) or run.path.parent.name or run.name


def _common(names: Sequence[str]) -> str:
  first, last = min(names), max(names)  # what these two begin with, all others do
  length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
  start = first[:length].rstrip(f'{_PUNCTUATION}0123456789')
  return start or f'{names[0]} and others'


def differences(series: Sequence[Series]) -> list[tuple[str, list[Any]]]:
  """Returns the settings that are not the same in all series: dotted name, and the value of each series.

  A series whose settings are not known is None everywhere. A model without experts lacks all fields of them, and then
  only their number is listed.
  """
  known = [s.settings for s in series if s.settings]
  names = sorted({name for settings in known for name in settings})
  absent = object()
  rows = []
  for name in names:
    values = [settings.get(name, absent) for settings in known]
    dense_apart = [v for v in values if v is not absent] if name.startswith(('model.moe.', 'distillation.')) else values
    keeps = name in ('model.moe.num_experts', 'distillation.teacher_path')
    if len({json.dumps(v, default=str) if v is not absent else '' for v in (values if keeps else dense_apart)}) > 1:
      rows.append((name, [s.settings.get(name) for s in series]))
  return rows


def in_bins(values: np.ndarray, width: int) -> np.ndarray:
  """Returns the means of every `width` neighbours, NaN left out, float64 `[ceil(points / width)]`."""
  if width <= 1 or not len(values):
    return values
  starts = np.arange(0, len(values), width)
  known = np.isfinite(values)
  sums, counts = (np.add.reduceat(a, starts) for a in (np.where(known, values, 0.0), known.astype(np.float64)))
  return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def bin_width(points: int) -> int:
  """Returns how many points become one, so that there are at most `MAX_POINTS`."""
  return -(-points // MAX_POINTS)


def curve(
  series: Series,
  lines_of: Callable[[Run], Sequence[Line]],
  values_of: Callable[[Sequence[Line]], np.ndarray] | str,
  timelines: Mapping[str, Timeline] | None = None,
) -> dict[str, Any] | None:
  """Returns one curve with its band, plain lists, or None if no run has a point.

  Args:
    series: what is drawn.
    lines_of: gives a run's lines.
    values_of: gives their values, or the name of a metric.
    timelines: by the runs' names; made of their lines if not given.

  Returns:
    `steps`, `tokens` and `seconds` (means over the runs), `mean`, `low`, `high` and `count`, one entry a step.
  """
  values_of = (lambda lines, name=values_of: column(lines, name)) if isinstance(values_of, str) else values_of
  points: dict[float, list[tuple[float, float, float]]] = {}
  width = bin_width(max((len(lines_of(run)) for run in series.runs), default=0))
  for run in series.runs:
    lines = lines_of(run)
    if not lines:
      continue
    steps, values = in_bins(column(lines, 'step'), width), in_bins(np.asarray(values_of(lines), np.float64), width)
    timeline = (timelines or {}).get(run.name) or cumulate(run.train)
    at = timeline.at(steps)
    for step, value, tokens, seconds in zip(steps, values, at['tokens'], at['seconds'], strict=True):
      if math.isfinite(value):
        points.setdefault(float(step), []).append((value, tokens, seconds))
  if not points:
    return None
  steps = sorted(points)
  spreads = [spread([value for value, _, _ in points[step]]) for step in steps]
  mean = lambda i: [float(np.mean([point[i] for point in points[step]])) for step in steps]  # noqa: E731
  return {
    'steps': steps,
    'tokens': mean(1),
    'seconds': mean(2),
    'mean': [s.mean for s in spreads],
    'low': [s.low for s in spreads],
    'high': [s.high for s in spreads],
    'count': [s.count for s in spreads],
  }
