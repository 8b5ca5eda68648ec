"""Numbers of finished runs, and what paired seeds can say about a difference."""

import dataclasses
import itertools
import math
import pathlib
import statistics
from collections.abc import Iterable

from switch_jax.folders.model_dir import ModelDir

TASK = 'source_code_continuation'
LOSS = 'cross_ent_loss_text'
CONFIDENCE = 0.95


def curve(folder: pathlib.Path, task: str = TASK) -> list[tuple[int, float]]:
  """Returns steps and held-out losses in nats per target token, in order."""
  return [(line['step'], line[LOSS]) for line in ModelDir(folder).read_held_out(task)]


def last_shared_step(folders: Iterable[pathlib.Path]) -> tuple[str, int]:
  """Returns the task that runs were evaluated on, and the last step at which all of them were."""
  folders = list(folders)
  (task,) = {task for folder in folders for task in ModelDir(folder).tasks()}
  return task, max(set.intersection(*({step for step, _ in curve(folder, task)} for folder in folders)))


def losses(folders: Iterable[pathlib.Path]) -> list[float]:
  """Returns the held-out losses of runs after the last step that all of them reached; infinity for no number."""
  folders = list(folders)
  task, step = last_shared_step(folders)
  found = [dict(curve(folder, task))[step] for folder in folders]
  return [math.inf if math.isnan(loss) else loss for loss in found]


def trained(folder: pathlib.Path, name: str) -> float:
  """Returns the mean of a training metric over the last tenth of the logged steps."""
  lines = [line[name] for line in ModelDir(folder).read_train() if name in line]
  last = lines[-max(len(lines) // 10, 1) :]
  return statistics.fmean(last) if last else math.nan


def steps_to_reach(points: list[tuple[int, float]], loss: float) -> float | None:
  """Returns after how many steps a curve first is at a loss, between evaluations on a straight line; None if never."""
  for (before, high), (step, low) in itertools.pairwise(points):
    if low <= loss:
      return step if high <= loss else before + (step - before) * (high - loss) / (high - low)
  return None


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Values of paired seeds, their mean, and how far it may be off.

  Attributes:
    values: one for each seed.
    mean, deviation: of the values; the deviation of one value is NaN.
    half_width: half of the 95 % t-interval of the mean; infinite for one value.
  """

  values: tuple[float, ...]
  mean: float
  deviation: float
  half_width: float

  @property
  def interval(self) -> tuple[float, float]:
    """The 95 % t-interval of the mean."""
    return self.mean - self.half_width, self.mean + self.half_width

  def __str__(self):
    around = f' ± {self.half_width:.2g}' if math.isfinite(self.half_width) else ''
    digits = 3 if abs(self.mean) < 1 else 2
    return f'{self.mean:.{digits}f}{around}'


def estimate(values: list[float]) -> Estimate:
  """Returns what seeds say together, by Student's t-distribution."""
  from scipy import stats

  count, mean = len(values), statistics.fmean(values)
  if count < 2 or not all(math.isfinite(value) for value in values):
    return Estimate(tuple(values), mean, math.nan, math.inf)
  deviation = statistics.stdev(values)
  half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
  return Estimate(tuple(values), mean, deviation, half)


def verdict(found: Estimate, above: float | None, near: tuple[float, float] | None) -> str:
  """Returns `agrees`, `cannot tell` or `disagrees`.

  Args:
    found: the paired seeds.
    above: the claim is that the mean is above this number,
    near: or that it lies between these two.
  """
  low, high = found.interval
  if not math.isfinite(found.half_width):
    return 'cannot tell'
  if near is None:
    return 'agrees' if low > above else 'disagrees' if high < above else 'cannot tell'
  if near[0] <= low and high <= near[1]:
    return 'agrees'
  return 'disagrees' if high < near[0] or low > near[1] else 'cannot tell'
