"""Pictures of studies: held-out loss against steps, with bands of seeds, and how many fewer steps experts need."""

import pathlib
import re
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from studies import claims, curves
from studies.records import Results

_DENSE, _GREY = '#c8553d', '#5c5c5c'
# Figure 8 of the paper, from its pixels: step speed-up and number of languages.
_PAPER = {3.2: 10, 3.8: 6, 4.4: 17, 5.0: 48, 5.7: 18, 6.3: 2, 7.6: 1, 8.2: 1, 10.7: 3, 15.1: 1}


def order(point: str) -> tuple:
  """Returns what points are sorted by: the dense models first, then by the numbers in their names."""
  return (not point.startswith('dense'), [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', point)])


def draw(results: Results, path: pathlib.Path) -> None:
  """Draws the loss of all points of a study against steps, and beside it what else the study is about."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  found = {point: [run.curve for run in results.runs[point].values()] for point in sorted(results.runs, key=order)}
  second = _second(results)
  figure = Figure(figsize=(10.5, 4.2) if second else (7.5, 4.2), layout='constrained', facecolor='white')
  FigureCanvasAgg(figure)
  axes = figure.subplots(1, 2 if second else 1, squeeze=False)[0]
  _draw_losses(axes[0], found)
  if second:
    second(axes[1], results)
  for axis in axes:
    axis.grid(color='#e8e8e8')
    axis.spines[['top', 'right']].set_visible(False)
  figure.savefig(path, dpi=130, metadata={'Software': None})


def _second(results: Results) -> Callable[..., None] | None:
  """Returns what draws the second panel of a study's picture, None for none."""
  runs = [run for seeds in results.runs.values() for run in seeds.values()]
  if 'dense' not in results.runs or len(results.runs) < 2:
    return None
  if results.study == 'horizon':
    return _draw_saved
  if 'mswitch' in results.runs and any(run.groups for run in runs):
    return _draw_languages
  return _draw_by_experts if results.study == 'experts' else None


def _colors(points: Sequence[str]) -> dict[str, object]:
  from matplotlib import colormaps

  others = [point for point in points if point != 'dense']
  shades = colormaps['viridis'](np.linspace(0.9, 0.05, max(len(others), 2)))
  return {'dense': _DENSE} | dict(zip(others, shades, strict=False))


def _draw_losses(axis, found: Mapping[str, Sequence[curves.Curve]]) -> None:
  colors = _colors(list(found))
  lows = []
  for point, seeds in found.items():
    shared = [step for step in curves.shared_steps(seeds) if step]
    losses = np.array([[dict(seed)[step] for step in shared] for seed in seeds], dtype=float)
    axis.plot(shared, losses.mean(0), color=colors[point], label=point.replace('_', ' '), linewidth=1.6)
    axis.fill_between(shared, losses.min(0), losses.max(0), color=colors[point], alpha=0.25, linewidth=0)
    lows.append(losses.mean(0))
  if 'dense' in found:
    final = statistics.fmean(seed[-1][1] for seed in found['dense'])
    axis.axhline(final, color=_DENSE, linewidth=1, linestyle='--')
  axis.set_ylim(min(low.min() for low in lows) - 0.03, float(np.median([low[len(low) // 8] for low in lows])) + 0.1)
  axis.set_xlabel('training steps')
  axis.set_ylabel('held-out loss, nats per target token')
  axis.legend(frameon=False, fontsize=8)


def _draw_saved(axis, results: Results) -> None:
  """Draws how many times fewer steps each point needs, against the steps of the dense model."""
  points = [point for point in sorted(results.runs, key=order) if point != 'dense']
  colors = _colors(points)
  for point in points:
    for n, (slow, fast) in enumerate(results.pairs('dense', point)):
      steps, ratios = zip(*curves.saved(slow.curve, fast.curve), strict=True)
      label = point.replace('_', ' ') if n == 0 else None
      axis.plot(steps, ratios, color=colors[point], linewidth=1.3, label=label)
  axis.axhline(1, color=_DENSE, linewidth=1, linestyle='--')
  axis.set_ylim(bottom=0)
  axis.set_xlabel('steps of the dense model')
  axis.set_ylabel('times fewer steps for its lowest loss so far')
  axis.legend(frameon=False, fontsize=8)


def _draw_by_experts(axis, results: Results) -> None:
  """Draws the loss after the last step that all runs reached by number of experts, of every seed."""
  counts = {point: int(point.rpartition('_')[2]) for point in results.runs if re.fullmatch(r'experts_\d+', point)}
  step = curves.shared_steps(run.curve for seeds in results.runs.values() for run in seeds.values())[-1]
  losses = {point: [dict(run.curve)[step] for run in results.runs[point].values()] for point in (*counts, 'dense')}
  for point, count in counts.items():
    axis.plot([count] * len(losses[point]), losses[point], 'o', color=_GREY, alpha=0.45, markersize=4)
  points = sorted(counts, key=counts.__getitem__)
  axis.plot([counts[p] for p in points], [statistics.fmean(losses[p]) for p in points], color='#1f3a5f')
  axis.axhline(statistics.fmean(losses['dense']), color=_DENSE, linewidth=1, linestyle='--', label='dense')
  axis.set_xscale('log', base=2)
  axis.set_xticks([counts[p] for p in points], [str(counts[p]) for p in points])
  axis.set_xlabel(f'experts in every layer; loss after {step:,} steps')
  axis.legend(frameon=False, fontsize=8)


def _draw_languages(axis, results: Results) -> None:
  """Draws how many languages have which step speed-up, mean of the seeds, beside the paper's Figure 8."""
  pairs = results.pairs('dense', 'mswitch')
  judged = claims.judged_languages(pairs[0][0]) if pairs else []
  if not judged:
    return
  found = [statistics.fmean(claims.language_speed_up(fast, slow, group) for slow, fast in pairs) for group in judged]
  axis.bar(list(_PAPER), list(_PAPER.values()), width=0.5, color='#9db4d0', label='paper, 107 tasks, mean 5')
  label = f'here, {len(found)} languages, mean {statistics.fmean(found):.2f}'
  axis.hist(found, np.arange(0, max(found) + 0.25, 0.25), color='#1f3a5f', edgecolor='white', label=label)
  axis.axvline(1, color=_DENSE, linewidth=1, linestyle='--')
  axis.set_xlabel("step speed-up over the dense twin's last loss")
  axis.set_ylabel('languages')
  axis.legend(frameon=False, fontsize=8)
