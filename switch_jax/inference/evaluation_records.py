"""Where evaluation leaves its numbers and predictions: `MODEL_DIR/eval/<task>.metrics/` and `.../predictions/<task>/`.

What lies in `eval/<task>/` is training's and left alone. Each step stands once in a file, in rising order, whatever
order they were evaluated in.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from switch_jax.folders.metric_lines import replace_file
from switch_jax.folders.model_dir import METRICS_FILE, ModelDir
from switch_jax.monitoring.metric_files import MetricFiles


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
    self._place, self._active = ModelDir(model_dir), active
    self._files = {name: MetricFiles(self._place.task_metrics(name), active=active) for name in names}

  def steps(self) -> set[int]:
    """Returns the steps for which all tasks have a line."""
    return set.intersection(*({line['step'] for line in self._place.read_task_metrics(name)} for name in self._files))

  def write_metrics(self, step: int, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the metrics of a step, by task, to `metrics.jsonl` and TensorBoard, and prints them."""
    for name, values in metrics.items():
      numbers = plain_numbers(values)
      note(f'  {name}: {one_line(numbers)}')
      self._files[name].merge(step, numbers)
    note(f'  in {", ".join(str(self._place.task_metrics(name) / METRICS_FILE) for name in metrics)}')

  def write_predictions(self, name: str, step: int, suffix: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes `predictions/<task>/<step><suffix>.jsonl`, a line for each example."""
    if not self._active:
      return
    path = self._place.predictions(name, step, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records))

  def close(self) -> None:
    """Closes the event files."""
    for files in self._files.values():
      files.close()
