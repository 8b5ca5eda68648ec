"""The runs of a report: which folders are runs, and what their files say."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from switch_jax.config import ConfigError, suggest
from switch_jax.folders import checked_json
from switch_jax.folders.metric_lines import read_lines
from switch_jax.folders.model_dir import EXPERT_TOKENS_FILE, MARKS, METRICS_FILE, ModelDir
from switch_jax.folders.regular_files import regular_file
from switch_jax.report import checked_files

# How deep a folder of runs is looked through.
_DEPTH = 2
UNKNOWN_TASK = 'task not recorded'

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What is on disk of one run.

  Attributes:
    path: its MODEL_DIR.
    name: how the report calls it, unique in the report.
    task: whose held-out loss it measures.
    record: `config.json` of its newest checkpoint that has one; empty if none has.
    train, held_out: lines of `metrics.jsonl`, NaN for null.
    expert_tokens: lines of `train/expert_tokens.jsonl`: `step`, and by layer the tokens of each expert.
    experts: the newest `experts_<step>.json`, or None.
  """

  path: epath.Path
  name: str
  task: str
  record: dict[str, Any]
  train: list[Line]
  held_out: list[Line]
  expert_tokens: list[Line]
  experts: dict[str, Any] | None

  @property
  def settings(self) -> dict[str, Any]:
    """The run's configuration as JSON; empty if it is not recorded."""
    return self.record.get('run') or {}

  @property
  def seed(self) -> int | None:
    """The random seed."""
    return self.settings.get('random_seed')

  @property
  def parameters(self) -> int | None:
    """The number of scalars of the model, if its checkpoint records it."""
    return self.record.get('parameters')

  @property
  def moe(self) -> dict[str, Any]:
    """The configuration of its Switch layers; empty for a dense model."""
    return (self.record.get('model') or {}).get('moe') or {}


def find_folders(paths: Sequence[str | os.PathLike[str]]) -> tuple[list[epath.Path], list[str]]:
  """Returns the folders of runs, and what is wrong with others.

  Args:
    paths: MODEL_DIRs, or folders with MODEL_DIRs in them.

  Raises:
    ConfigError: a path does not exist.
  """
  found, problems = {}, []
  for text in paths:
    path = epath.Path(os.fspath(text))
    if not path.exists():
      beside = path.parent.iterdir() if path.parent.is_dir() else ()
      near = suggest(path.name, [p.name for p in beside if p.is_dir()])
      raise ConfigError(f'MODEL_DIR is {os.fspath(text)!r}, and there is no such folder; name those of runs.{near}')
    if not path.is_dir():
      problems.append(f'{text} is a file; a run is a folder.')
      continue
    folders = list(_runs_below(path, _DEPTH))
    if not folders:
      problems.append(f'{text} holds no run: it has no {" and no ".join(MARKS)}.')
    found |= {os.path.realpath(folder): folder for folder in folders}
  return list(found.values()), problems


def _by_number(name: str) -> list[tuple[bool, int, str]]:
  """Returns a key that puts `experts_2` before `experts_16`."""
  parts = re.split(r'(\d+)', name)
  return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _runs_below(path: epath.Path, depth: int) -> Iterator[epath.Path]:
  """Yields a folder if it is a run, else the runs in its folders."""
  try:
    inside = sorted((p for p in path.iterdir() if p.is_dir()), key=lambda p: _by_number(p.name))
  except OSError:
    return
  if any(p.name in MARKS for p in inside):
    yield path
  elif depth:
    for folder in inside:
      yield from _runs_below(folder, depth - 1)


def names_of(folders: Sequence[epath.Path]) -> list[str]:
  """Returns the shortest ends of the paths that are all different."""
  parts = [os.path.abspath(folder).split(os.sep) for folder in folders]
  for length in range(1, max(map(len, parts), default=1) + 1):
    names = ['/'.join(part[-length:]) for part in parts]
    if len(set(names)) == len(names):
      break
  return names


def read_run(path: epath.Path, name: str) -> tuple[Run | None, list[str]]:
  """Reads one run.

  Args:
    path: its MODEL_DIR.
    name: what to call it.

  Returns:
    The run, or None if it has no line of metrics; and what is missing or damaged, in sentences.
  """
  place = ModelDir(path)
  try:
    record, problems = place.read_newest_config()
    if wrong := checked_files.wrong_settings(record):
      problems.append(f'config.json of the newest checkpoint is damaged in {", ".join(wrong)}, and left out.')
      record = {}
    task = ((record.get('run') or {}).get('data') or {}).get('mixture_or_task_name')
    task = task or _only_task(place) or UNKNOWN_TASK
    run = Run(
      path=path,
      name=name,
      task=task,
      record=record,
      train=_read_lines(place.train / METRICS_FILE, problems),
      held_out=_read_lines(place.held_out(task) / METRICS_FILE, problems)
      or _read_lines(place.task_metrics(task) / METRICS_FILE, problems),
      expert_tokens=_read_lines(place.train / EXPERT_TOKENS_FILE, problems, checked_files.is_expert_tokens),
      experts=_newest_experts(place, task, problems),
    )
  except (OSError, ConfigError) as error:
    return None, [f'{name} is left out: it cannot be read ({error}).']
  if not run.train and not run.held_out:
    return None, [*(f'{name}: {p}' for p in problems), f'{name} is left out: it has no metrics yet.']
  if not record:
    problems.append('no checkpoint with a config.json, so its settings are not known and it stands alone.')
  elif not run.held_out:
    problems.append('no held-out loss yet.')
  return run, [f'{name}: {p}' for p in problems]


def _read_lines(
  path: epath.Path, problems: list[str], is_whole: Callable[[Line], bool] = checked_files.is_metrics
) -> list[Line]:
  """Returns the records of a file of lines by step; says what is torn or damaged, or holds what is no number."""
  if '://' not in os.fspath(path):
    regular_file(path.parent, path.name)
  found, where = read_lines(path), f'{path.parent.name}/{path.name}'
  if found.torn:
    problems.append(f'the last line of {where} is torn (killed while writing, or still running) and left out.')
  if found.damaged:
    problems.append(f'{where} is damaged in {_numbered(found.damaged)}, which is left out.')
  records = [record for record in found.records if is_whole(record)]
  if wrong := len(found.records) - len(records):
    problems.append(f'{where} has {wrong} lines whose values are no numbers; they are left out.')
  return records


def _numbered(lines: Sequence[int]) -> str:
  shown = ', '.join(map(str, lines[:3])) + (', ...' if len(lines) > 3 else '')
  return f'line {shown}'


def _only_task(place: ModelDir) -> str | None:
  """Returns the task that a run without a record is evaluated on, if there is just one."""
  tasks = place.tasks()
  tasks = [task for task in tasks if (place.held_out(task) / METRICS_FILE).exists()] or tasks
  return tasks[0] if len(tasks) == 1 else None


def _newest_experts(place: ModelDir, task: str, problems: list[str]) -> dict[str, Any] | None:
  """Returns what the experts took at the newest step it was measured at."""
  for file in place.measured_experts(task):
    try:
      experts = checked_json.read(file.parent, file.name)
      if checked_files.is_experts(experts):
        return experts
    except ConfigError:
      pass
    problems.append(f'{file.name} is damaged; delete it and use --experts.')
  return None
