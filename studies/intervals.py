"""What paired seeds say about a number: its interval, a verdict on a claim, and what could have been seen at all."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Literal

from scipy import stats

CONFIDENCE, POWER = 0.95, 0.8
# More seeds than these are not asked for: such an effect is not worth looking for with models of this size.
MOST_SEEDS = 200

Verdict = Literal['agrees', 'disagrees', 'cannot tell']


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

  @property
  def visible(self) -> float:
    """The smallest effect that so many seeds would have shown in four of five studies; infinite for one seed."""
    return smallest_visible(self.deviation, len(self.values))

  def __str__(self):
    around = f' ± {self.half_width:.2g}' if math.isfinite(self.half_width) else ''
    digits = 3 if abs(self.mean) < 1 else 2
    return f'{self.mean:.{digits}f}{around}'


def estimate(values: Sequence[float]) -> Estimate:
  """Returns what seeds say together, by Student's t-distribution."""
  count, mean = len(values), statistics.fmean(values)
  if count < 2 or not all(math.isfinite(value) for value in values):
    return Estimate(tuple(values), mean, math.nan, math.inf)
  deviation = statistics.stdev(values)
  half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
  return Estimate(tuple(values), mean, deviation, half)


def smallest_visible(deviation: float, seeds: int) -> float:
  """Returns the effect that a two-sided t-test of so many paired seeds finds with probability 0.8.

  Args:
    deviation: standard deviation of the paired difference from seed to seed.
    seeds: how many; fewer than two see nothing.
  """
  if seeds < 2 or not math.isfinite(deviation):
    return math.inf
  quantiles = stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1) + stats.t.ppf(POWER, seeds - 1)
  return float(quantiles) * deviation / math.sqrt(seeds)


def seeds_needed(deviation: float, effect: float) -> int:
  """Returns how many paired seeds show an effect with probability 0.8: from 3 up to `MOST_SEEDS`."""
  enough = (n for n in range(3, MOST_SEEDS) if smallest_visible(deviation, n) <= effect)
  return next(enough, MOST_SEEDS)


def p_values(found: Estimate, above: float, near: tuple[float, float] | None) -> tuple[float, float]:
  """Returns the two-sided p-values for a claim and against it; 1 where nothing can be said.

  Args:
    found: the paired seeds.
    above: the claim is that the mean is above this number,
    near: or that it lies between these two (two one-sided tests).
  """
  count = len(found.values)
  if not math.isfinite(found.half_width):
    return 1.0, 1.0
  error = found.deviation / math.sqrt(count)

  def tail(distance: float) -> float:
    """The probability of a mean at least so far up if there is no difference."""
    if error == 0:
      return 0.0 if distance > 0 else 1.0
    return float(stats.t.sf(distance / error, count - 1))

  if near is None:
    pro, contra = tail(found.mean - above), tail(above - found.mean)
  else:
    pro = max(tail(found.mean - near[0]), tail(near[1] - found.mean))
    contra = min(tail(near[0] - found.mean), tail(found.mean - near[1]))
  return min(1.0, 2 * pro), min(1.0, 2 * contra)


def corrected(values: Sequence[float]) -> list[float]:
  """Returns p-values corrected for their number by Holm's method, in the same order."""
  order = sorted(range(len(values)), key=lambda i: values[i])
  result, largest = [1.0] * len(values), 0.0
  for rank, i in enumerate(order):
    largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
    result[i] = largest
  return result


def verdicts(claims: Sequence[tuple[Estimate, float, tuple[float, float] | None]]) -> list[Verdict]:
  """Returns the verdict on each claim, corrected for the number of claims that are judged together.

  Args:
    claims: for each (the paired seeds, `above`, `near`), as in `p_values`.
  """
  pairs = [p_values(*claim) for claim in claims]
  for_all = corrected([min(pair) for pair in pairs])
  said: list[Verdict] = []
  for (pro, contra), p in zip(pairs, for_all, strict=True):
    said.append('cannot tell' if p > 1 - CONFIDENCE else 'agrees' if pro < contra else 'disagrees')
  return said
