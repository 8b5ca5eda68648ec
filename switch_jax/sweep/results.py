"""What the runs of a sweep came to: a CSV of all numbers and a short table."""

import csv
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from switch_jax.sweep.points import Point

SUMMARY = 'summary.csv'
HELD_OUT_LOSS = 'cross_ent_loss_text'
# Written into the folder of a point when its run has ended without an error.
FINISHED = 'finished.json'
FINISHED_STATUS, FAILED, STOPPED = 'finished', 'failed', 'stopped'
ELSEWHERE, NOT_RUN = 'running elsewhere', 'not run'


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a `metrics.jsonl`; a last line that is cut off is left out, and a missing file is empty."""
  lines = []
  for text in path.read_text(encoding='utf-8').splitlines() if path.exists() else ():
    try:
      lines.append(json.loads(text))
    except ValueError:
      break
  return lines


def read_finished(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns what a finished point recorded (`arguments` and `seconds`), or None."""
  try:
    return json.loads((folder / FINISHED).read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return None


def collect(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the newest numbers of a run: its step, its parameters, and each metric of each evaluated task."""
  found: dict[str, Any] = {}
  train = read_lines(folder / 'train' / 'metrics.jsonl')
  if train:
    found |= {'step': train[-1]['step'], 'train/loss': train[-1].get('loss')}
  tasks = sorted(path.parent for path in folder.glob('eval/*/metrics.jsonl'))
  for task in tasks:
    lines = read_lines(task / 'metrics.jsonl')
    if lines:
      found |= {f'{task.name}/{name}': value for name, value in lines[-1].items() if name != 'step'}
  records = sorted(folder.glob('checkpoints/*/config.json'), key=lambda path: path.stat().st_mtime)
  if records:
    found['parameters'] = json.loads(records[-1].read_text(encoding='utf-8')).get('parameters')
  return found


def rows(points: Sequence[Point], out: pathlib.Path, statuses: Mapping[str, str]) -> list[dict[str, Any]]:
  """Returns a row for each point: name, status, seconds, what it binds and what its run came to."""
  found = []
  for point in points:
    folder = out / point.name
    row: dict[str, Any] = {'name': point.name, 'status': statuses.get(point.name, NOT_RUN)}
    row['seconds'] = round((read_finished(folder) or {}).get('seconds', 0)) or None
    if point.gin_files:
      row['gin_file'] = ' '.join(point.gin_files)
    row |= point.bindings
    found.append(row | collect(folder))
  return found


def write_csv(found: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
  """Writes rows as CSV; what a row does not have stays empty."""
  names = list(dict.fromkeys(name for row in found for name in row))
  with path.open('w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, names)
    writer.writeheader()
    writer.writerows(found)


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
