"""Claims as numbers that are measured for each seed, and studies as lists of claims about the points of one sweep."""

import dataclasses
import math
import re
import statistics
from collections.abc import Callable, Mapping

from studies import curves
from studies.intervals import Estimate, Verdict, estimate, verdicts
from studies.records import Results, Run

# Held-out target tokens of a language on which its loss is well known.
ENOUGH_TOKENS = 5_000
# What a claim measures for one seed: given the run of each point by name, a number; NaN where there is none.
Measure = Callable[[Mapping[str, Run]], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """A sentence of the paper as a number that is measured for each seed.

  Attributes:
    text: the claim.
    paper: what the paper measured, as text.
    measure: the number of one seed.
    points: the points it needs; `other/point` is one of another study.
    unit: of the number.
    above: the claim is that the mean is above this,
    near: or, if given, that it is between these two.
    effect: how far from `above` (or how wide `near` is): the smallest effect that is of interest here; the paper's
      where it has a number. None where the paper has none.
    at_most: for a number that some runs are too short for (NaN): what it is at most.
    reason: why the seeds cannot tell, where they cannot and their interval is wider than twice the effect.
  """

  text: str
  paper: str
  measure: Measure
  points: tuple[str, ...]
  unit: str = 'nats'
  above: float = 0.0
  near: tuple[float, float] | None = None
  effect: float | None = None
  at_most: Measure | None = None
  reason: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """A sweep and its claims.

  Attributes:
    title: what the paper has.
    minutes: what two idle cores should need for it.
    claims: about its points.
    files: gin files of all points.
    needs: another study, whose results its points begin with or are compared with.
    equal_flops: points that are compared as equal: their FLOPs are those of the first within 1 %.
  """

  title: str
  minutes: int
  claims: tuple[Claim, ...]
  files: tuple[str, ...] = ('base.gin',)
  needs: str | None = None
  equal_flops: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
  """A claim and what the seeds say.

  Attributes:
    claim: the claim.
    seeds: the seeds that all of its points have.
    found: the numbers of these seeds, None without a seed.
    at_most: NaN unless a number was not reached and is known to be at most that in all seeds.
    verdict: corrected for the claims that were judged together.
  """

  claim: Claim
  seeds: tuple[int, ...]
  found: Estimate | None
  at_most: float
  verdict: Verdict


def judge(studies: Mapping[str, Study], results: Mapping[str, Results]) -> dict[str, list[Judged]]:
  """Returns what the results say of every claim of these studies, corrected for the number of claims.

  Args:
    studies: by name.
    results: of these studies and of those they need, by name; what is missing has no seed.
  """
  measured = []
  for name, study in studies.items():
    for claim in study.claims:
      runs = {point: _runs(point, name, results) for point in claim.points}
      seeds = tuple(sorted(set.intersection(*(set(found) for found in runs.values()))))
      of_seeds = [{point: found[seed] for point, found in runs.items()} for seed in seeds]
      values = [claim.measure(of_seed) for of_seed in of_seeds]
      at_most = math.nan
      if claim.at_most is not None and any(map(math.isnan, values)):
        bounds = [claim.at_most(of_seed) for of_seed in of_seeds]
        at_most = max(bound if math.isnan(value) else value for value, bound in zip(values, bounds, strict=True))
      measured.append((name, claim, seeds, estimate(values) if values else None, at_most))
  said = iter(verdicts([(found, claim.above, claim.near) for _, claim, _, found, _ in measured if found]))
  judged: dict[str, list[Judged]] = {name: [] for name in studies}
  for name, claim, seeds, found, at_most in measured:
    verdict: Verdict = next(said) if found else 'cannot tell'
    if len(seeds) > 1 and at_most < claim.above:  # a bound that holds in every seed
      verdict = 'disagrees'
    judged[name].append(Judged(claim=claim, seeds=seeds, found=found, at_most=at_most, verdict=verdict))
  return judged


def _runs(point: str, study: str, results: Mapping[str, Results]) -> Mapping[int, Run]:
  other, _, name = point.rpartition('/')
  found = results.get(other or study)
  return found.runs.get(name, {}) if found else {}


def last_losses(*runs: Run) -> list[float]:
  """Returns the held-out losses after the last step that all of these runs reached; infinity for no number."""
  step = curves.shared_steps(run.curve for run in runs)[-1]
  found = [dict(run.curve)[step] for run in runs]
  return [math.inf if math.isnan(loss) else loss for loss in found]


def gain(better: str, than: str, text: str, paper: str, **kwargs) -> Claim:
  """A claim about the held-out loss after the last step that both reached: how much lower it is.

  A number of the paper is also the effect that is of interest here.
  """

  def measure(run):
    high, low = last_losses(run[than], run[better])
    return high - low

  if re.fullmatch(r'\d\.\d+', paper):
    kwargs.setdefault('effect', float(paper))
  return Claim(text=text, paper=paper, measure=measure, points=(better, than), **kwargs)


def fewer_steps(
  better: str,
  than: str,
  text: str,
  paper: str,
  above: float = 1.0,
  lowest: bool = False,
  crossing: curves.Crossing = 'first',
  **kwargs,
) -> Claim:
  """A claim about how many times fewer steps one model needs for what another has after its last step.

  With `lowest` it is for the lowest loss that the other ever has, at the step at which it has it.
  """

  def goal(run):
    return curves.lowest(run[than].curve) if lowest else run[than].curve[-1]

  def measure(run):
    at, loss = goal(run)
    steps = curves.steps_to_reach(run[better].curve, loss, crossing)
    return at / steps if steps else math.nan

  def at_most(run):
    return goal(run)[0] / run[better].curve[-1][0]

  points = (better, than)
  return Claim(
    text=text, paper=paper, measure=measure, points=points, unit='times', above=above, at_most=at_most, **kwargs
  )


def lower(better: str, than: str, metric: str, text: str, paper: str, unit: str, **kwargs) -> Claim:
  """A claim about a metric of training: how much lower its mean is at the end."""

  def measure(run):
    return run[than].trained.get(metric, math.nan) - run[better].trained.get(metric, math.nan)

  return Claim(text=text, paper=paper, measure=measure, points=(better, than), unit=unit, **kwargs)


def more_right(better: str, than: str, text: str, paper: str, **kwargs) -> Claim:
  """A claim about the held-out targets that are right from end to end after the last step: how many points more."""

  def measure(run):
    right = [run[point].held_out.get('example_accuracy', math.nan) for point in (better, than)]
    return 100 * (right[0] - right[1])

  return Claim(text=text, paper=paper, measure=measure, points=(better, than), unit='points', **kwargs)


def kept(
  student: str, teacher: str, dense: str, text: str, paper: str, than: str | None = None, tuned: bool = False, **kwargs
) -> Claim:
  """A claim about the share of a teacher's gain over the dense model that a student keeps, in percent.

  With `than` it is how much more that is than another student keeps; with `tuned` the gain is one of targets that are
  right, and not of held-out loss. Each is what it is after its own last step: a teacher may have made more of them.
  """
  points = (student, teacher, dense, *([than] if than else []))

  def measure(run):
    if tuned:
      found = [run[point].held_out.get('example_accuracy', math.nan) for point in points]
    else:
      found = [-run[point].last for point in points]
    whole = found[1] - found[2]
    if whole <= 0:  # a teacher that is no better has nothing to keep
      return math.nan
    return 100 * (found[0] - (found[3] if than else found[2])) / whole

  return Claim(text=text, paper=paper, measure=measure, points=points, unit='%', **kwargs)


def judged_languages(run: Run) -> list[str]:
  """Returns the languages whose held-out loss is well known."""
  return [group for group, tokens in run.group_tokens.items() if tokens >= ENOUGH_TOKENS]


def by_language(
  better: str, than: str, number: Callable[[Run, Run, str], float], text: str, paper: str, unit: str, **kwargs
) -> Claim:
  """A claim about the mean over all languages with enough held-out tokens of a number that each of them has.

  Args:
    better, than: points.
    number: of the two runs and a language.
    text, paper, unit, kwargs: as `Claim`.
  """

  def measure(run):
    fast, slow = run[better], run[than]
    judged = judged_languages(slow)
    return statistics.fmean(number(fast, slow, group) for group in judged) if judged else math.nan

  return Claim(text=text, paper=paper, measure=measure, points=(better, than), unit=unit, **kwargs)


def language_gain(fast: Run, slow: Run, group: str) -> float:
  """Returns how much lower the last held-out loss of a language is, in nats a target token."""
  return slow.groups[group][-1] - fast.groups[group][-1]


def language_speed_up(fast: Run, slow: Run, group: str) -> float:
  """Returns the step speed-up in a language, from where on the loss stays as low."""
  return curves.speed_up(slow.group_curve(group), fast.group_curve(group), 'last')


def predicts(points: tuple[str, ...], upstream: str, text: str, paper: str, **kwargs) -> Claim:
  """A claim that models with a lower pre-training loss have a lower loss after fine-tuning: Pearson's correlation."""

  def measure(run):
    before = last_losses(*(run[f'{upstream}/{point}'] for point in points))
    after = last_losses(*(run[point] for point in points))
    return statistics.correlation(before, after)

  needed = (*points, *(f'{upstream}/{point}' for point in points))
  return Claim(text=text, paper=paper, measure=measure, points=needed, unit='correlation', **kwargs)
