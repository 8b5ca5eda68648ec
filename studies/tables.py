"""Tables of the claims and of the points, as Markdown, made of results and of nothing else."""

import math
import statistics
from collections.abc import Mapping, Sequence

from studies import curves, pictures
from studies.claims import Judged, Study
from studies.intervals import estimate, seeds_needed, verdicts
from studies.records import DROPPED, LARGEST_LOAD, LOSS, Results
from studies.step_times import StepTimes

COLUMNS = ('claim', 'paper', 'here, ± the 95 % interval', 'seeds', 'could have seen', 'verdict')


# Studies that choose a setting, and which one.
CHOICES = dict.fromkeys(
  ('learning_rates', 'horizon_rates', 'topic_rates', 'language_rates', 'multilingual_rates'), 'LEARNING_RATE'
)


def claims_table(studies: Mapping[str, Study], judged: Mapping[str, Sequence[Judged]]) -> str:
  """Returns the claims of studies, their numbers and verdicts; verdicts are corrected for the number of claims."""
  lines = [f'| {" | ".join(COLUMNS)} |', '| --- ' * len(COLUMNS) + '|']
  for name, study in studies.items():
    if not study.claims:
      continue
    lines += [f'| **{study.title}** | | `python -m studies {name}`, {study.minutes} min | | | |']
    lines += [f'| {" | ".join(_cells(row))} |' for row in judged[name]]
  return '\n'.join(lines)


def _cells(row: Judged) -> list[str]:
  claim, found = row.claim, row.found
  if found is None:
    return [claim.text, claim.paper, 'not run here', '0', '', '']
  seeds = str(len(row.seeds))
  if math.isnan(found.mean):
    if row.verdict == 'disagrees':
      return [claim.text, claim.paper, f'at most {row.at_most:.2f} {claim.unit}', seeds, '', row.verdict]
    return [claim.text, claim.paper, 'not reached', seeds, '', row.verdict]
  visible = f'{found.visible:.2g}' if math.isfinite(found.visible) else 'nothing'
  return [claim.text, claim.paper, f'{found} {claim.unit}', seeds, visible, f'{row.verdict}{_why(row)}']


def _why(row: Judged) -> str:
  """Returns why the seeds cannot tell: too few for the effect of interest, or only for so many claims at once."""
  claim, found = row.claim, row.found
  if row.verdict != 'cannot tell' or found is None or not math.isfinite(found.half_width):
    return ''
  reasons = [claim.reason] if claim.reason else []
  if not reasons and claim.effect is not None and found.half_width > claim.effect:
    reasons = [f'{seeds_needed(found.deviation, claim.effect)} seeds would be needed for {claim.effect:g}']
  (alone,) = verdicts([(found, claim.above, claim.near)])
  reasons += [f'alone it {alone}'] if alone != row.verdict else []
  return f' ({"; ".join(reasons)})' if reasons else ''


def points_table(results: Results) -> str:
  """Returns what each point came to: parameters, FLOPs, and the loss after the last step that all runs reached.

  Beside it how much higher the last held-out loss is than that of training (over the last tenth of the steps, with its
  dropout), the tokens dropped, and the load of the expert with most tokens over the mean.
  """
  points = sorted(results.runs, key=pictures.order)
  every = [run for point in points for run in results.runs[point].values()]
  step = curves.shared_steps(run.curve for run in every)[-1]
  columns = ['point', 'parameters', 'forward FLOPs a target token', f'held-out loss at {step:,} steps']
  columns += ['above training loss', 'tokens dropped', 'largest load']
  lines = [f'| {" | ".join(columns)} |', '| --- ' * len(columns) + '|']
  for point in points:
    runs = list(results.runs[point].values())
    losses = estimate([dict(run.curve)[step] for run in runs])
    around = f' ± {losses.deviation:.4f}' if len(runs) > 1 else ''
    cells = [
      point,
      f'{runs[0].parameters / 1e6:.3f}M',
      f'{runs[0].flops / 1e3:.1f}k',
      f'{losses.mean:.4f}{around} ({len(runs)} seed{"s" if len(runs) > 1 else ""})',
      _mean([run.last - run.trained[LOSS] for run in runs if LOSS in run.trained], '+.3f'),
      _mean([run.trained[DROPPED] for run in runs if DROPPED in run.trained], '.1%'),
      _mean([run.trained[LARGEST_LOAD] for run in runs if LARGEST_LOAD in run.trained], '.2f'),
    ]
    lines += [f'| {" | ".join(cells)} |']
  return '\n'.join(lines)


def _mean(values: Sequence[float], form: str) -> str:
  """Returns the mean in a format, nothing without values."""
  return format(statistics.fmean(values), form) if values else ''


def choices(results: Results, binding: str) -> dict[str, dict[str, float]]:
  """Returns for each model of a study of choices the mean last loss by the value of what is chosen.

  Args:
    results: whose points are called `model,BINDING=value`.
    binding: what is chosen.
  """
  found: dict[str, dict[str, float]] = {}
  for point in sorted(results.runs, key=pictures.order):
    model, _, value = point.partition(f',{binding}=')
    losses = [run.curve[-1][1] for run in results.runs[point].values()]
    found.setdefault(model, {})[value] = statistics.fmean(losses)
  return found


def choices_table(results: Results, binding: str) -> str:
  """Returns `choices` as a table; the best value of each model stands out."""
  found = choices(results, binding)
  values = sorted({value for losses in found.values() for value in losses}, key=float)
  lines = [f'| model | {" | ".join(f"{binding} {value}" for value in values)} |', '| --- ' * (len(values) + 1) + '|']
  for model, losses in found.items():
    best = min(losses, key=lambda value: losses[value])
    cells = [f'**{losses[v]:.4f}**' if v == best else f'{losses[v]:.4f}' if v in losses else '' for v in values]
    lines += [f'| {model.replace("_", " ")} | {" | ".join(cells)} |']
  return '\n'.join(lines)


def horizon_table(results: Results, dense: str = 'dense') -> str:
  """Returns, by steps of the dense model, how many times fewer each point needs for its lowest loss so far.

  Mean of the seeds, lowest and highest; nothing where a seed does not get there.
  """
  steps = curves.shared_steps(run.curve for run in results.runs[dense].values())
  steps = [step for step in steps if step and steps[-1] % step == 0 and steps[-1] // step in (1, 2, 4, 8, 16, 32)]
  lines = [f'| dense model, steps | {" | ".join(f"{step:,}" for step in steps)} |']
  lines += ['| --- ' * (len(steps) + 1) + '|']
  for point in (point for point in sorted(results.runs, key=pictures.order) if point != dense):
    pairs = [(slow.curve, fast.curve) for slow, fast in results.pairs(dense, point)]
    saved = [dict(curves.saved(slow, fast)) for slow, fast in pairs]
    cells = [_spread([found[step] for found in saved if step in found], len(pairs)) for step in steps]
    lines.append(f'| {point.replace("_", " ")} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def _spread(ratios: Sequence[float], seeds: int) -> str:
  if not ratios or len(ratios) < seeds:
    return ''
  around = f' ({min(ratios):.2f} to {max(ratios):.2f})' if len(ratios) > 1 else ''
  return f'{statistics.fmean(ratios):.2f}{around}'


def in_time(results: Results, times: StepTimes, dense: str = 'dense') -> str:
  """Returns what fewer steps for the dense model's lowest loss are in time, by measured steps."""
  said = []
  for point in (
    point for point in sorted(results.runs, key=pictures.order) if point in times.medians and point != dense
  ):
    dense_seconds, seconds = times.medians[dense], times.medians[point]
    pairs = [(slow.curve, fast.curve) for slow, fast in results.pairs(dense, point)]
    goals = [(curves.lowest(long), curves.steps_to_reach(short, curves.lowest(long)[1])) for long, short in pairs]
    found = [step * dense_seconds / (steps * seconds) for (step, _), steps in goals if steps]
    if len(found) == len(pairs):
      said.append(
        f'A step takes {1e3 * dense_seconds:.1f} ms (dense) and {1e3 * seconds:.1f} ms ({point.replace("_", " ")}), '
        f'medians of {times.steps} in turns on {times.device}: in time the lowest loss of the dense model is reached '
        f'{estimate(found)} times sooner (paper: 7 times).'
      )
  return '\n\n'.join(said)


def page(
  studies: Mapping[str, Study],
  judged: Mapping[str, Sequence[Judged]],
  results: Mapping[str, Results],
  times: StepTimes | None = None,
) -> str:
  """Returns the claims of the studies that have results, and for each of them its points, and where from.

  Args:
    studies, judged, results: by name.
    times: of the steps of `horizon`.
  """
  shown = {name: study for name, study in studies.items() if name in results}
  parts = [claims_table(shown, judged)] if shown else []
  if missing := [name for name in studies if name not in results]:
    parts.append(f'Without results of this version: {", ".join(missing)}.')
  for name, study in shown.items():
    found = results[name]
    versions = ', '.join(f'{package} {version}' for package, version in found.versions.items())
    code = f'Commit {found.commit}' if found.commit else f'Code {found.code[:12]}, of a commit that is not known'
    made = f'{code}, {versions}, text {found.corpus[:12]}, on {found.device}.'
    chosen = CHOICES.get(name)
    parts += [f'**{study.title}**', choices_table(found, chosen) if chosen else points_table(found)]
    if name == 'horizon' and 'dense' in found.runs:
      parts += [
        "How many times fewer steps for the dense model's lowest loss so far, mean of the seeds, lowest and highest:"
      ]
      parts += [horizon_table(found)]
      if times:
        parts += [in_time(found, times)]
    parts += [made]
  return '\n\n'.join(parts)
