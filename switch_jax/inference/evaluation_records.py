"""Where evaluation leaves its numbers and predictions: `MODEL_DIR/eval/<task>/` and `MODEL_DIR/predictions/<task>/`.

Training writes the loss of its own task into `eval/<its task>/metrics.jsonl`, which stays its own: the metrics of that
task or mixture go to `eval/<task>.metrics/`. Each step stands once in a file, in rising order, whatever order they were
evaluated in.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

METRICS_FILE = 'metrics.jsonl'


def note(text: str) -> None:
  """Prints a line, on the first host."""
  if jax.process_index() == 0:
    print(text, flush=True)


def mixture_averages(tasks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Returns the averages of a mixture.

  Args:
    tasks: the metrics of each task by name; names with a `/` belong to the evaluation after it.

  Returns:
    Each metric's mean over the tasks that have it, and `average`: the mean over tasks of the mean of their metrics, as
    GLUE and SuperGLUE count; one for each evaluation.
  """
  values: dict[str, list[float]] = {}
  means: dict[str, list[float]] = {}
  for metrics in tasks:
    own: dict[str, list[float]] = {}
    for name, value in plain_numbers(metrics).items():
      values.setdefault(name, []).append(value)
      own.setdefault(name.partition('/')[2], []).append(value)
    for suffix, numbers in own.items():
      means.setdefault(suffix, []).append(sum(numbers) / len(numbers))
  averages = {name: sum(v) / len(v) for name, v in values.items()}
  return averages | {f'average/{s}' if s else 'average': sum(m) / len(m) for s, m in means.items()}


def plain_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Returns the metrics that are numbers (SeqIO has texts and histograms too) as Python's."""
  found = {}
  for name, value in metrics.items():
    value = getattr(value, 'value', value)
    if np.ndim(value) == 0 and np.asarray(value).dtype.kind in 'biuf':
      found[name] = float(value)
  return found


def one_line(numbers: Mapping[str, float]) -> str:
  """Returns metrics as one line, without those of single groups (languages), which may be hundreds."""
  mean = '_mean_over_groups'
  grouped = {key.partition(mean)[0] for key in numbers if mean in key}

  def is_of_a_group(key):
    head, _, rest = key.partition('/')
    return head in grouped and bool(rest) and not rest.startswith('capacity_')

  shown = [f'{key} {value:.4g}' for key, value in numbers.items() if not is_of_a_group(key)]
  if hidden := len(numbers) - len(shown):
    shown.append(f'{hidden} more by group')
  return ', '.join(shown) or 'no numbers'


class EvaluationFiles:
  """The files of an evaluation.

  Args:
    model_dir: of the run.
    names: of tasks and mixture.
    active: False writes nothing, for hosts that leave it to the first one.
  """

  def __init__(self, model_dir: str | os.PathLike[str], names: Iterable[str], *, active: bool = True):
    self._model_dir, self._active = epath.Path(model_dir), active
    self._names, self._events = list(names), {}

  def folder(self, name: str) -> epath.Path:
    """Returns where the metrics of a task go."""
    own = self._model_dir / 'eval' / name
    lines = _read(own / METRICS_FILE)
    is_of_training = any('cross_ent_loss' in line for line in lines)
    return self._model_dir / 'eval' / f'{name}.metrics' if is_of_training else own

  def steps(self) -> set[int]:
    """Returns the steps for which all files have a line."""
    found = [{line['step'] for line in _read(self.folder(name) / METRICS_FILE)} for name in self._names]
    return set.intersection(*found)

  def write_metrics(self, step: int, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the metrics of a step, by task, to `metrics.jsonl` and TensorBoard, and prints them."""
    for name, values in metrics.items():
      numbers = plain_numbers(values)
      note(f'  {name}: {one_line(numbers)}')
      if self._active:
        folder = self.folder(name)
        self._write_line(folder, step, numbers)
        self._write_events(folder, step, numbers)
    places = ', '.join(dict.fromkeys(str(self.folder(name) / METRICS_FILE) for name in metrics))
    note(f'  in {places}')

  def _write_line(self, folder: epath.Path, step: int, numbers: Mapping[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = {line['step']: line for line in _read(folder / METRICS_FILE)}
    whole = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    lines[step] = {**lines.get(step, {}), 'step': step, **whole}
    text = ''.join(json.dumps(lines[s]) + '\n' for s in sorted(lines))
    temporary = folder / f'{METRICS_FILE}.tmp'
    temporary.write_text(text)
    temporary.replace(folder / METRICS_FILE)

  def _write_events(self, folder: epath.Path, step: int, numbers: Mapping[str, float]) -> None:
    if folder not in self._events:
      from switch_jax.data import quiet_tensorflow  # noqa: F401, I001  clu would import TensorFlow loudly
      from clu import metric_writers

      self._events[folder] = metric_writers.SummaryWriter(os.fspath(folder))
    self._events[folder].write_scalars(step, dict(numbers))
    self._events[folder].flush()

  def write_predictions(self, name: str, step: int, suffix: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes `predictions/<task>/<step><suffix>.jsonl`, a line for each example."""
    if not self._active:
      return
    folder = self._model_dir / 'predictions' / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{step}{suffix}.jsonl'
    temporary = folder / f'{path.name}.tmp'
    temporary.write_text(''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records))
    temporary.replace(path)

  def close(self) -> None:
    """Closes the event files."""
    for writer in self._events.values():
      writer.close()


def _read(path: epath.Path) -> list[dict[str, Any]]:
  """Returns the whole lines of a `metrics.jsonl`; none if it is not there."""
  found = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      record = json.loads(line)
    except ValueError:
      continue
    if isinstance(record, dict) and isinstance(record.get('step'), int):
      found.append(record)
  return found
