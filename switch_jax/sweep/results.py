"""What the runs of a sweep came to: a CSV of all numbers and a short table."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from switch_jax.folders.model_dir import ModelDir
from switch_jax.sweep.points import Point

SUMMARY = 'summary.csv'
HELD_OUT_LOSS = 'cross_ent_loss_text'
FINISHED_STATUS, FAILED, STOPPED = 'finished', 'failed', 'stopped'
ELSEWHERE, NOT_RUN = 'running elsewhere', 'not run'


def read_finished(folder: epath.Path) -> dict[str, Any] | None:
  """Returns what a finished point recorded (`arguments` and `seconds`), or None."""
  try:
    return json.loads(ModelDir(folder).finished.read_bytes())
  except (OSError, ValueError):
    return None


def collect(folder: epath.Path) -> dict[str, Any]:
  """Returns the newest numbers of a run: its step, its parameters, and each metric of each evaluated task.

  Names are those of the folders below `eval`: `<task>/<name>` is what training measured on held-out data,
  `<task>.metrics/<name>` a metric of the task. None is what is no number.
  """
  place, found = ModelDir(folder), {}
  if train := place.read_train():
    found |= {'step': train[-1]['step'], 'train/loss': train[-1].get('loss')}
  for task in place.tasks():
    for where, lines in (
      (place.held_out(task), place.read_held_out(task)),
      (place.task_metrics(task), place.read_task_metrics(task)),
    ):
      numbers = {name: value for name, value in lines[-1].items() if name != 'step'} if lines else {}
      found |= {f'{where.name}/{name}': value for name, value in numbers.items()}
  if record := place.read_newest_config()[0]:
    found['parameters'] = record.get('parameters')
  return {name: None if value != value else value for name, value in found.items()}


def rows(points: Sequence[Point], out: epath.Path, statuses: Mapping[str, str]) -> list[dict[str, Any]]:
  """Returns a row for each point: name, status, seconds, what it binds and what its run came to."""
  found = []
  for point in points:
    folder = out / point.name
    row: dict[str, Any] = {'name': point.name, 'status': statuses.get(point.name, NOT_RUN)}
    row['seconds'] = round((read_finished(folder) or {}).get('seconds', 0)) or None
    if point.gin_files:
      row['gin_file'] = ' '.join(point.gin_files)
    row |= point.bindings | point.results
    found.append(row | collect(folder))
  return found


def write_csv(found: Sequence[Mapping[str, Any]], path: epath.Path) -> None:
  """Writes rows as CSV; what a row does not have stays empty."""
  names = list(dict.fromkeys(name for row in found for name in row))
  text = io.StringIO(newline='')
  writer = csv.DictWriter(text, names)
  writer.writeheader()
  writer.writerows(found)
  path.write_bytes(text.getvalue().encode())


def table(found: Sequence[Mapping[str, Any]]) -> str:
  """Returns the rows as text: name, status, step, seconds and the held-out losses."""
  losses = list(dict.fromkeys(name for row in found for name in row if name.endswith(f'/{HELD_OUT_LOSS}')))
  columns = ['name', 'status', 'step', 'seconds', *losses]
  titles = [*columns[:4], *(['held-out loss'] if len(losses) == 1 else [n.partition('/')[0] for n in losses])]
  cells = [titles, *([_cell(row.get(name)) for name in columns] for row in found)]
  widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
  return '\n'.join('  '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: Any) -> str:
  return '' if value is None else f'{value:.4f}' if isinstance(value, float) else str(value)
