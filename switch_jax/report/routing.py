"""What the routers of one run did over time, thinned out to what a page can show."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from switch_jax.report.runs import Run
from switch_jax.report.series import bin_width, in_bins
from switch_jax.report.timeline import column

# By layer, from the lines of training.
METRICS = ('fraction_dropped', 'router_entropy', 'expert_load_max_over_mean')
# Columns of a heat map, and its cells in all layers together: the page stays small and quick.
_MAX_COLUMNS, _MAX_CELLS = 80, 60_000
# Tokens shown of what an expert takes.
_SHOWN_TOKENS = 12


def layers_of(run: Run) -> list[str]:
  """Returns the layers with a router, the encoder's first, by number."""
  prefix = f'{METRICS[0]}/'
  return sorted({name.removeprefix(prefix) for line in run.train for name in line if name.startswith(prefix)}, key=_key)


def _key(layer: str) -> tuple[bool, int, str]:
  stack, _, rest = layer.partition('_')
  number, _, part = rest.partition('_')
  return stack != 'encoder', int(number) if number.isdecimal() else 0, part


def over_time(run: Run) -> dict[str, Any]:
  """Returns `steps`, and by metric and layer a list of values, means of neighbouring lines."""
  width = bin_width(len(run.train))
  values = lambda name: in_bins(column(run.train, name), width).tolist()  # noqa: E731
  layers = layers_of(run)
  return {
    'steps': in_bins(column(run.train, 'step'), width).tolist(),
    **{metric: {layer: values(f'{metric}/{layer}') for layer in layers} for metric in METRICS},
  }


def load_maps(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the loads of experts over time: `steps`, and by layer `[experts][steps]`, 1 for an even share.

  Args:
    lines: of `expert_tokens.jsonl`; only some are taken if there are many, the last among them.
  """
  if not lines:
    return {'steps': [], 'layers': {}}
  layers = sorted((name for name in lines[-1] if name != 'step'), key=_key)
  shape = lambda line: [len(line.get(layer, ())) for layer in layers]  # noqa: E731
  lines = [line for line in lines if shape(line) == shape(lines[-1])]
  cells = sum(len(lines[-1][layer]) for layer in layers)
  columns = min(len(lines), _MAX_COLUMNS, max(2, _MAX_CELLS // max(cells, 1)))
  taken = [lines[i] for i in sorted({round(i) for i in np.linspace(len(lines) - 1, 0, columns)})]
  shares = {}
  for layer in layers:
    tokens = np.array([line[layer] for line in taken], np.float64)
    even = np.maximum(tokens.mean(axis=1, keepdims=True), 1e-9)
    shares[layer] = (tokens / even).T.tolist()
  return {'steps': [line['step'] for line in taken], 'layers': shares}


def what_experts_take(experts: Mapping[str, Any] | None) -> dict[str, Any] | None:
  """Returns what the page shows of `experts_<step>.json`: fewer tokens, otherwise the same."""
  if experts is None:
    return None
  layers = {}
  for layer in sorted(experts['layers'], key=_key):
    found = dict(experts['layers'][layer])
    found['favourites'] = [
      [[t['piece'], t['count'], t['of']] for t in expert[:_SHOWN_TOKENS]] for expert in found['favourites']
    ]
    layers[layer] = found
  kept = ('step', 'split', 'batches', 'router', 'groups')
  return {name: experts.get(name) for name in kept} | {'layers': layers}
