"""Pictures of studies: held-out loss against steps, with bands of seeds, and how many fewer steps experts need."""

import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from studies import curves
from studies.records import Results

_DENSE, _GREY = '#c8553d', '#5c5c5c'


def order(point: str) -> tuple:
  """Returns what points are sorted by: the dense models first, then by the numbers in their names."""
  return (not point.startswith('dense'), [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', point)])


def draw(results: Results, path: pathlib.Path) -> None:
  """Draws the loss of all points of a study against steps; the experts' picture has a second panel."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  found = {point: [run.curve for run in results.runs[point].values()] for point in sorted(results.runs, key=order)}
  experts = results.study == 'experts' and 'dense' in found
  figure = Figure(figsize=(10.5, 4.2) if experts else (7.5, 4.2), layout='constrained', facecolor='white')
  FigureCanvasAgg(figure)
  axes = figure.subplots(1, 2 if experts else 1, squeeze=False)[0]
  _draw_losses(axes[0], found)
  if experts:
    _draw_worth(axes[1], results)
  for axis in axes:
    axis.grid(color='#e8e8e8')
    axis.spines[['top', 'right']].set_visible(False)
  figure.savefig(path, dpi=130, metadata={'Software': None})


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


def _draw_worth(axis, results: Results) -> None:
  """Draws for each number of experts how many times more steps the dense model needs for its last shared loss."""
  pairs = {
    int(point.rpartition('_')[2]): [
      (results.runs['dense'][seed].curve, results.runs[point][seed].curve) for seed in results.seeds(('dense', point))
    ]
    for point in results.runs
    if re.fullmatch(r'experts_\d+', point)
  }
  pairs = {count: found for count, found in sorted(pairs.items()) if found}
  step = min(curve[-1][0] for found in pairs.values() for _, curve in found)
  shades = _colors([f'experts_{count}' for count in pairs])
  means = {}
  for count, found in pairs.items():
    ratios, reached = zip(*(curves.worth(dense, curve, step) for dense, curve in found), strict=True)
    means[count] = statistics.fmean(ratios)
    for ratio, exact in zip(ratios, reached, strict=True):
      axis.plot(count, ratio, 'o' if exact else '^', color=shades[f'experts_{count}'], markersize=5)
    label = f'{means[count]:.1f}' if all(reached) else f'over {means[count]:.1f}'
    axis.annotate(label, (count, max(ratios)), (0, 7), textcoords='offset points', ha='center')
  axis.plot(list(means), list(means.values()), color=_GREY, linewidth=1, zorder=0)
  axis.axhline(1, color=_DENSE, linewidth=1, linestyle='--')
  axis.set_xscale('log', base=2)
  axis.set_xticks(list(pairs), [str(count) for count in pairs])
  axis.set_xlim(min(means) / 1.4, max(means) * 1.4)
  axis.set_ylim(bottom=0, top=1.15 * max(means.values()))
  axis.set_xlabel(f'experts in every layer; their loss after {step:,} steps')
  axis.set_ylabel('times more steps the dense model needs')
