"""From runs to one HTML file: tables by the template, curves and maps as data that the page's script draws."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import plotly.offline

import switch_jax
from switch_jax.report import routing, summary
from switch_jax.report.distillation import NOTHING, students
from switch_jax.report.runs import Run
from switch_jax.report.series import Series, Spread, curve, differences, group_by_task, make_series
from switch_jax.report.timeline import cumulate, seconds_per_step

_FOLDER = pathlib.Path(__file__).parent
# Okabe and Ito's colours, told apart by colour-blind people too; beyond them lines are dashed.
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#7a5195', '#4d4d4d')
_DASHES = ('solid', 'dash', 'dot', 'dashdot')
_SIGNIFICANT = 5


def render(runs: Sequence[Run], problems: Sequence[str] = ()) -> str:
  """Returns the page, which needs nothing but itself.

  Args:
    runs: at least one.
    problems: what could not be read, in sentences; listed at the top.
  """
  tasks = [_task(name, members, runs) for name, members in group_by_task(runs).items()]
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
  )
  environment.filters |= {'spread': _spread_text, 'number': _number, 'percent': _percent, 'setting': _setting}
  data = {'tasks': [task['data'] for task in tasks]}
  return environment.get_template('page.html.jinja').render(
    tasks=tasks,
    problems=problems,
    title=title_of(runs, [task['name'] for task in tasks]),
    version=switch_jax.__version__,
    style=(_FOLDER / 'page.css').read_text(),
    script=(_FOLDER / 'page.js').read_text(),
    plotly=plotly.offline.get_plotlyjs(),
    # Inside <script> only `<` could end the element.
    data=json.dumps(_rounded(data), allow_nan=False, separators=(',', ':')).replace('<', '\\u003c'),
  )


def title_of(runs: Sequence[Run], tasks: Sequence[str]) -> str:
  """Returns what a page shows: the run and its task, or the tasks and how many runs."""
  if len(runs) == 1:
    return f'{runs[0].name}: {tasks[0]}'
  others = f' and {len(tasks) - 2} other tasks' if len(tasks) > 3 else ''
  return f'{", ".join(tasks[:2] if others else tasks)}{others}: {len(runs)} runs'


def _task(name: str, runs: Sequence[Run], all_runs: Sequence[Run]) -> dict[str, Any]:
  """Returns what the template and the script need of one task."""
  series = make_series(runs, all_runs)
  styles = [
    {'color': _COLOURS[i % len(_COLOURS)], 'dash': _DASHES[i // len(_COLOURS) % len(_DASHES)]}
    for i in range(len(series))
  ]
  routed = [s.runs[0] for s in series if routing.layers_of(s.runs[0]) or s.runs[0].experts]
  rows = [summary.summarize(s) | {'series': s, 'style': style} for s, style in zip(series, styles, strict=True)]
  return {
    'name': name,
    'rows': rows,
    'differences': differences(series) if len(series) > 1 else [],
    'series': series,
    'students': students(series, all_runs),
    'groups': summary.group_losses(series),
    'routed': routed,
    'data': {
      'series': [{'label': s.label, 'runs': len(s.runs), **style} for s, style in zip(series, styles, strict=True)],
      'curves': _curves(series),
      'routed': [_routed(run) for run in routed],
    },
  }


def _curves(series: Sequence[Series]) -> dict[str, list[dict[str, Any] | None]]:
  """Returns by name one curve for each series, None where it has no such numbers."""
  timelines = {run.name: cumulate(run.train) for s in series for run in s.runs}
  train, held_out = (lambda run: run.train), (lambda run: run.held_out)
  wanted = {
    'held_out': (held_out, 'cross_ent_loss'),
    'held_out_text': (held_out, 'cross_ent_loss_text'),
    'held_out_accuracy': (held_out, 'accuracy'),
    'training': (train, 'cross_ent_loss'),
    'seconds_per_step': (train, seconds_per_step),
    'input_wait': (train, 'input_wait_fraction'),
  }
  return {name: [curve(s, lines, values, timelines) for s in series] for name, (lines, values) in wanted.items()}


def _routed(run: Run) -> dict[str, Any]:
  """Returns what the page shows of the routers of one run."""
  return {
    'label': run.name,
    'num_experts': run.moe.get('num_experts'),
    'over_time': routing.over_time(run),
    'loads': routing.load_maps(run.expert_tokens),
    'experts': routing.what_experts_take(run.experts),
  }


def _rounded(tree: Any) -> Any:
  """Returns nested lists and dictionaries with short numbers, and None for what is no number."""
  if isinstance(tree, Mapping):
    return {name: _rounded(value) for name, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [_rounded(value) for value in tree]
  if isinstance(tree, float):
    if not math.isfinite(tree):
      return None
    return int(tree) if tree.is_integer() and abs(tree) < 1e15 else float(f'{tree:.{_SIGNIFICANT}g}')
  return tree


# How numbers are written in tables.


def _spread_text(value: Spread, digits: int = 3, scale: float = 1.0) -> str:
  """Returns `1.234 ± 0.012` for three or more, `1.234 (1.230 to 1.238)` for two, `1.234` for one, a dash for none."""
  if not value.count:
    return NOTHING
  text = f'{value.mean * scale:,.{digits}f}'
  if value.count == 1:
    return text
  if value.count == 2:
    return f'{text} ({value.low * scale:,.{digits}f} to {value.high * scale:,.{digits}f})'
  return f'{text} ± {value.half * scale:,.{digits}f}'


def _number(value: float | None) -> str:
  """Returns a whole number with separators, a dash for none."""
  return NOTHING if value is None or not math.isfinite(value) else f'{value:,.0f}'


def _percent(value: Spread | float | None) -> str:
  """Returns a share in per cent."""
  if isinstance(value, Spread):
    text = _spread_text(value, 1, 100)
    return text if text == NOTHING else f'{text} %'
  return NOTHING if value is None or not math.isfinite(value) else f'{100 * value:.1f} %'


def _setting(value: Any) -> str:
  """Returns a setting as it would be written in a gin file."""
  if value is None:
    return 'None'
  if isinstance(value, str):
    return value if len(value) <= 80 else f'{value[:60]} ... ({len(value)} characters)'
  return repr(tuple(value)) if isinstance(value, list) else repr(value)
