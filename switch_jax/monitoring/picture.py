"""What a run came to, in one picture: the loss curve beside its yardsticks, and the load of every expert."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from switch_jax.monitoring.summary import layer_key

_INK, _PALE, _HELD_OUT, _YARDSTICK = '#1f3a5f', '#9db4d0', '#c8553d', '#5c5c5c'
# More experts than this are drawn without their numbers.
_MAX_NUMBERED_EXPERTS = 16
# The colours end at this load, so that one overloaded expert does not wash out all the others.
_MAX_COLOURED_LOAD = 2.0

Record = Mapping[str, float]


def save_picture(
  path: str | os.PathLike[str],
  *,
  train: Sequence[Record],
  held_out: Sequence[Record] = (),
  yardsticks: Mapping[str, float] | None = None,
  expert_tokens: Mapping[str, Sequence[float] | np.ndarray] | None = None,
  title: str = '',
  train_key: str = 'cross_ent_loss',
  held_out_key: str = 'cross_ent_loss',
  held_out_label: str = 'held-out',
) -> None:
  """Draws a run and writes the picture as a PNG file.

  Args:
    path: the file; may be remote.
    train: lines of `train/metrics.jsonl`.
    held_out: lines of `eval/<task>/metrics.jsonl`.
    yardsticks: losses to compare with, by name, drawn as horizontal lines.
    expert_tokens: tokens sent to each expert, `[experts]`, by layer; left out for a dense model.
    title: what stands above.
    train_key, held_out_key: which metric is drawn, in nats per target token.
    held_out_label: what the legend calls the held-out loss.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  loads = {layer: np.asarray(tokens, np.float64) for layer, tokens in (expert_tokens or {}).items()}
  layers = sorted(loads, key=layer_key)
  load_height = 1.1 + 0.34 * len(layers) if layers else 0.0
  figure = Figure(figsize=(9, 4.8 + load_height), layout='constrained', facecolor='white')
  FigureCanvasAgg(figure)
  if layers:
    above, below = figure.subplots(2, 1, height_ratios=(4.8, load_height))
    _draw_load(figure, below, {layer: loads[layer] for layer in layers})
  else:
    above = figure.subplots()
  _draw_training(above, *_series(train, train_key))
  _draw_held_out(above, *_series(held_out, held_out_key), held_out_label)
  _draw_yardsticks(above, yardsticks or {})
  _finish_losses(above)
  if title:
    figure.suptitle(title, fontsize=13, color=_INK)
  with epath.Path(path).open('wb') as file:
    figure.savefig(file, format='png', dpi=130)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
  """Returns the mean of `values` [points] over windows of at most `width` points around each one, NaN left out."""
  known = np.isfinite(values)
  sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
  counts = np.concatenate([[0], np.cumsum(known)])
  # A window at an edge is cut on both sides alike, so the curve begins and ends on its own points.
  centre = np.arange(len(values))
  half = np.minimum(np.minimum(centre, len(values) - 1 - centre), width // 2)
  low, high = centre - half, centre + half + 1
  number = counts[high] - counts[low]
  return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def _draw_training(axes: Any, steps: np.ndarray, losses: np.ndarray) -> None:
  if len(steps) > 20:
    axes.plot(steps, losses, color=_PALE, linewidth=0.8)
    axes.plot(steps, smooth(losses, max(5, len(steps) // 25)), color=_INK, linewidth=1.8, label='training, smoothed')
  elif len(steps):
    axes.plot(steps, losses, color=_INK, linewidth=1.8, label='training', marker='.')


def _draw_held_out(axes: Any, steps: np.ndarray, losses: np.ndarray, label: str) -> None:
  known = np.isfinite(losses)
  if not known.any():
    return
  # The points are what was measured; the thin line only leads the eye.
  axes.plot(steps, losses, color=_HELD_OUT, linewidth=0.9, linestyle=':', zorder=3)
  style = {'marker': 'o', 'markersize': 6, 'markeredgecolor': 'white', 'linestyle': 'none'}
  axes.plot(steps, losses, color=_HELD_OUT, label=f'{label} (last: {losses[known][-1]:.2f})', zorder=4, **style)


def _draw_yardsticks(axes: Any, yardsticks: Mapping[str, float]) -> None:
  finite = sorted(((value, name) for name, value in yardsticks.items() if math.isfinite(value)), reverse=True)
  for place, (value, name) in enumerate(finite):
    axes.axhline(value, color=_YARDSTICK, linewidth=1.0, linestyle=(0, (5, 4)), zorder=1)
    # Labels stand outside, where no curve runs, and lean away from each other, since two values may be near.
    side = 'center' if len(finite) == 1 else 'bottom' if place == 0 else 'top'
    where = {'xy': (1, value), 'xycoords': ('axes fraction', 'data'), 'xytext': (5, 0), 'textcoords': 'offset points'}
    axes.annotate(f'{name}\n{value:.2f}', **where, ha='left', va=side, fontsize=9, color=_YARDSTICK)


def _finish_losses(axes: Any) -> None:
  axes.set_xlabel('step')
  axes.set_ylabel('loss, nats per target token')
  axes.margins(x=0.03, y=0.08)
  axes.grid(color='#e8e8e8', linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)
  if axes.get_legend_handles_labels()[0]:
    axes.legend(frameon=False, loc='upper right')
  else:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, 'no loss was recorded', ha='center', transform=axes.transAxes, color=_YARDSTICK)


def _draw_load(figure: Any, axes: Any, expert_tokens: Mapping[str, np.ndarray]) -> None:
  """A heat map [layers, experts] of the tokens of an expert over those of an even split."""
  num_experts = max(map(len, expert_tokens.values()))
  load = np.full((len(expert_tokens), num_experts), np.nan)
  for row, tokens in zip(load, expert_tokens.values(), strict=True):
    row[: len(tokens)] = tokens / max(tokens.mean(), 1e-30)
  scale = {'vmin': 0.0, 'vmax': _MAX_COLOURED_LOAD}
  image = axes.imshow(load, cmap='RdBu_r', aspect='auto', interpolation='nearest', **scale)
  if num_experts <= _MAX_NUMBERED_EXPERTS:
    for (row, column), value in np.ndenumerate(load):
      if math.isfinite(value):
        dark = abs(value - _MAX_COLOURED_LOAD / 2) > 0.6
        style = {'ha': 'center', 'va': 'center', 'fontsize': 8.5, 'color': 'white' if dark else '#222222'}
        axes.text(column, row, f'{value:.2f}', **style)
    axes.set_xticks(range(num_experts))
    # White seams between the cells.
    axes.set_xticks(np.arange(1, num_experts) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(load)) - 0.5, minor=True)
    axes.grid(which='minor', color='white', linewidth=1.5)
  axes.set_yticks(range(len(expert_tokens)), [layer.replace('_', ' ') for layer in expert_tokens])
  axes.set_xlabel('expert')
  axes.set_title('tokens sent to each expert, relative to an even split (1)', fontsize=10.5, loc='left')
  axes.tick_params(which='both', length=0)
  axes.spines[:].set_visible(False)
  extend = 'max' if np.nanmax(load) > _MAX_COLOURED_LOAD else 'neither'
  beside = axes.inset_axes((1.015, 0, 0.02, 1))
  bar = figure.colorbar(image, cax=beside, ticks=[0, 0.5, 1, 1.5, 2], extend=extend)
  bar.outline.set_visible(False)


def _series(records: Sequence[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the steps and the values of one metric, both [points]; null is NaN, which leaves a gap."""
  points = [(record['step'], record[key]) for record in records if key in record]
  return np.array([p[0] for p in points], np.float64), np.array([p[1] for p in points], np.float64)
