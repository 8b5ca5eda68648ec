"""Experiment trackers beside TensorBoard and `metrics.jsonl`: Weights & Biases, MLflow.

Each is a package of its own that need not be there. Whatever keeps one from working is said in one line, before the
first step or when it happens, and training goes on without it. A run keeps its names there (`trackers.json`), so that
it goes on under them when it is continued; steps that are run again are logged again.
"""

import dataclasses
import importlib
import json
import netrc
import os
import urllib.parse
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from switch_jax.config import ConfigError, RunConfig, first_line, flatten
from switch_jax.folders import checked_json
from switch_jax.folders.metric_lines import replace_file
from switch_jax.folders.model_dir import ModelDir
from switch_jax.folders.remote import is_remote

_TITLES = {'wandb': 'Weights & Biases', 'mlflow': 'MLflow'}
# The longest value of a parameter that every version of MLflow takes.
_LONGEST_PARAMETER = 250


@dataclasses.dataclass(frozen=True)
class _Opened:
  """One tracker, ready to be written to.

  Attributes:
    id: its name of the run.
    log: takes metrics by name, and the step.
    finish: sends what is left, and ends.
  """

  id: str
  log: Callable[[dict[str, float], int], Any]
  finish: Callable[[], Any]


def _package(name: str) -> ModuleType:
  """Imports a tracker's package.

  Raises:
    ConfigError: it is not installed.
  """
  try:
    package = importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name != name:
      raise
    package = ModuleType(name)
  if getattr(package, '__file__', None) is None:  # or a folder of that name, which the tracker itself makes
    raise ConfigError(f'it is not installed (pip install {name})')
  return package


def _is_logged_in() -> bool:
  """Whether Weights & Biases would find a key, or needs none. It is not asked: it would ask the user."""
  if os.environ.get('WANDB_MODE', 'online') not in ('online', 'shared'):
    return True
  if os.environ.get('WANDB_API_KEY') or os.environ.get('WANDB_IDENTITY_TOKEN_FILE'):
    return True
  host = urllib.parse.urlparse(os.environ.get('WANDB_BASE_URL', 'https://api.wandb.ai')).hostname or ''
  try:
    return netrc.netrc(os.environ.get('NETRC')).authenticators(host) is not None
  except (OSError, netrc.NetrcParseError):
    return False


def _open_wandb(run: RunConfig, project: str, known: str | None) -> _Opened:
  wandb = _package('wandb')
  if not _is_logged_in():
    raise ConfigError('not logged in (wandb login, or WANDB_API_KEY; WANDB_MODE=offline keeps everything here)')
  folder = ModelDir(run.model_dir).path
  opened = wandb.init(
    project=project,
    name=folder.name,
    id=known,
    resume='allow' if known else None,
    config=run.to_json(),
    dir=None if is_remote(folder) else os.fspath(folder),
  )
  return _Opened(opened.id, lambda metrics, step: opened.log(metrics, step=step), opened.finish)


def _open_mlflow(run: RunConfig, project: str, known: str | None) -> _Opened:
  mlflow = _package('mlflow')
  mlflow.set_experiment(project)
  opened = mlflow.start_run(run_id=known, run_name=ModelDir(run.model_dir).path.name)
  if known is None:  # they cannot be changed, and a run that goes on may have more steps
    mlflow.log_params({name: str(value)[:_LONGEST_PARAMETER] for name, value in flatten(run.to_json()).items()})
  # In a thread of its own: a request takes longer than many a step.
  log = lambda metrics, step: mlflow.log_metrics(metrics, step=step, synchronous=False)  # noqa: E731
  return _Opened(opened.info.run_id, log, mlflow.end_run)


_OPEN = {'wandb': _open_wandb, 'mlflow': _open_mlflow}


class Trackers:
  """The trackers of a run that work. Nothing that goes wrong in them is raised.

  Args:
    run: names them.
    note: takes a line for people.
  """

  def __init__(self, run: RunConfig, note: Callable[[str], None]):
    self._note = note
    self._opened: dict[str, _Opened] = {}
    place = ModelDir(run.model_dir).trackers
    try:
      known = checked_json.read(place.parent, place.name) if run.trackers and place.exists() else {}
    except (ConfigError, OSError):
      known = {}
    for name in run.trackers:
      try:
        self._opened[name] = _OPEN[name](run, run.tracker_project, known.get(name))
      except (Exception, SystemExit) as error:
        note(f'no {_TITLES[name]}: {_explain(error)}; training goes on without it')
    if ids := {name: opened.id for name, opened in self._opened.items()}:
      place.parent.mkdir(parents=True, exist_ok=True)
      replace_file(place, json.dumps(known | ids) + '\n')

  def writer(self, prefix: str) -> Callable[[int, Mapping[str, float]], None]:
    """Returns the function that takes a step and its metrics, which get the prefix `<prefix>/`."""
    return lambda step, metrics: self._write(step, {f'{prefix}/{name}': value for name, value in metrics.items()})

  def _write(self, step: int, metrics: dict[str, float]) -> None:
    for name in list(self._opened):
      try:
        self._opened[name].log(metrics, step)
      except (Exception, SystemExit) as error:
        del self._opened[name]
        self._note(f'{_TITLES[name]} failed at step {step:,}: {_explain(error)}; training goes on without it')

  def close(self) -> None:
    """Sends what is left, and waits for it."""
    for name, opened in self._opened.items():
      try:
        opened.finish()
      except (Exception, SystemExit) as error:
        self._note(f'{_TITLES[name]} may lack the last steps: {_explain(error)}')
    self._opened = {}


def _explain(error: BaseException) -> str:
  if isinstance(error, ConfigError):
    return str(error)
  return f'{type(error).__name__}: {first_line(error)}'.rstrip('.')
