"""What lies where in a MODEL_DIR: the one place that spells its names.

    config.gin, summary.png, vocabulary.model, profile/      of the run
    checkpoints/<step>/{state/,data/,config.json,files.json} (`switch_jax.checkpoints`)
    train/{metrics.jsonl,expert_tokens.jsonl}                and TensorBoard's events
    eval/<task>/{metrics.jsonl,experts_<step>.json}          the held-out loss, written by training
    eval/<task>.metrics/metrics.jsonl                        the task's own metrics, written by --run_mode=eval
    predictions/<task>/<step>.jsonl                          and what they were computed of
    finished.json                                            of a sweep's point that has ended without an error
    run.json                                                 the identity of the run that was begun there
    trackers.json                                            what Weights & Biases and MLflow call the run
    owner.json                                               of a run under way: who it is (`switch_jax.folders.claim`)

Two writers never share a file: training cuts and appends to its own, evaluation replaces lines by step in its own.
Older versions wrote a task's metrics to `eval/<task>/metrics.jsonl` where training had no loss; they are found there.
"""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

from etils import epath

from switch_jax.config import ConfigError
from switch_jax.folders import checked_json
from switch_jax.folders.metric_lines import read_metrics

CHECKPOINTS = 'checkpoints'
# Any of these folders makes a folder a MODEL_DIR.
MARKS = (CHECKPOINTS, 'train', 'eval')
# In the folder of a step.
STATE, DATA, CONFIG, FILES = 'state', 'data', 'config.json', 'files.json'
# Orbax's mark of a step that is complete, on stores without a rename.
COMMITTED = 'commit_success.txt'
# In `train` and in the folders of evaluation.
METRICS_FILE = 'metrics.jsonl'
# Tokens by expert of some steps, lists by layer: what `metrics.jsonl` has no place for.
EXPERT_TOKENS_FILE = 'expert_tokens.jsonl'
# The claim inside a folder; that of an output file lies beside it.
OWNER = 'owner.json'
_OF_TASK = '.metrics'


def _inside(name: str) -> Any:
  """Returns a property: the place of that name in the MODEL_DIR."""
  return property(lambda self: self.path / name)


@dataclasses.dataclass(frozen=True, init=False)
class ModelDir:
  """The places in one MODEL_DIR; nothing is made, and nothing but the `read_` methods and listings looks at the disk.

  Attributes:
    path: of the MODEL_DIR, local and absolute, or remote (`gs://...`).
    checkpoints, train, profile: folders in it.
    config_gin, summary, vocabulary, finished, begun, owner, trackers: files in it.
  """

  path: epath.Path

  def __init__(self, path: str | os.PathLike[str]):
    text = os.fspath(path)
    object.__setattr__(self, 'path', epath.Path(text if '://' in text else os.path.abspath(text)))

  checkpoints, train, profile = _inside(CHECKPOINTS), _inside('train'), _inside('profile')
  config_gin, summary, vocabulary = _inside('config.gin'), _inside('summary.png'), _inside('vocabulary.model')
  finished, begun, owner = _inside('finished.json'), _inside('run.json'), _inside(OWNER)
  trackers = _inside('trackers.json')

  def step(self, step: int) -> epath.Path:
    """Returns the folder of a checkpoint."""
    return self.checkpoints / str(step)

  def config(self, step: int) -> epath.Path:
    """Returns the `config.json` of a checkpoint."""
    return self.step(step) / CONFIG

  def read_begun(self) -> dict[str, Any] | None:
    """Returns `run.json`; None if there is none (older versions wrote none), or a damaged one."""
    try:
      return checked_json.read(self.path, self.begun.name) if self.begun.exists() else None
    except ConfigError:
      return None

  def numbered_steps(self) -> list[int]:
    """Returns the numbers of all folders that are named as a step is, in rising order, whatever is in them."""
    return _steps_in(p.name for p in self.checkpoints.iterdir()) if self.checkpoints.is_dir() else []

  def read_newest_config(self) -> tuple[dict[str, Any], list[str]]:
    """Returns `config.json` of the newest checkpoint with a readable one, else {}; and what is wrong in newer ones."""
    problems: list[str] = []
    for step in reversed(self.numbered_steps()):
      try:
        return checked_json.read(self.step(step), CONFIG), problems
      except (FileNotFoundError, NotADirectoryError):
        problems.append(f'checkpoint {step} has no config.json (half written).')
        continue
      except ConfigError:
        problems.append(f'config.json of checkpoint {step} is damaged.')
    return {}, problems

  def held_out(self, task: str) -> epath.Path:
    """Returns the folder of the held-out loss of a task, which training writes."""
    return self.path / 'eval' / task

  def task_metrics(self, task: str) -> epath.Path:
    """Returns the folder of the metrics of a task or mixture, which `--run_mode=eval` writes."""
    return self.path / 'eval' / f'{task}{_OF_TASK}'

  def tasks(self) -> list[str]:
    """Returns the tasks that anything was measured on, those with a held-out loss first."""
    files = sorted((self.path / 'eval').glob(f'*/{METRICS_FILE}'))
    names = sorted((p.parent.name for p in files), key=lambda name: name.endswith(_OF_TASK))
    return list(dict.fromkeys(name.removesuffix(_OF_TASK) for name in names))

  def read_train(self) -> list[dict[str, Any]]:
    """Returns the lines of training."""
    return read_metrics(self.train / METRICS_FILE)

  def read_held_out(self, task: str) -> list[dict[str, Any]]:
    """Returns the lines of the held-out loss of a task."""
    return [line for line in read_metrics(self.held_out(task) / METRICS_FILE) if _is_held_out(line)]

  def read_task_metrics(self, task: str) -> list[dict[str, Any]]:
    """Returns the lines of a task's metrics, one for each step in rising order, also those of older versions."""
    lines: dict[int, dict[str, Any]] = {}
    older = [line for line in read_metrics(self.held_out(task) / METRICS_FILE) if not _is_held_out(line)]
    for line in (*older, *read_metrics(self.task_metrics(task) / METRICS_FILE)):
      lines[line['step']] = {**lines.get(line['step'], {}), **line}
    return [lines[step] for step in sorted(lines)]

  def experts(self, task: str, step: int) -> epath.Path:
    """Returns the file of what the experts of a checkpoint take on the held-out data of a task."""
    return self.held_out(task) / f'experts_{step}.json'

  def measured_experts(self, task: str) -> list[epath.Path]:
    """Returns the files that `experts` names, the newest step first."""
    files = self.held_out(task).glob('experts_*.json')
    steps = _steps_in(p.name.removeprefix('experts_').removesuffix('.json') for p in files)
    return [self.experts(task, step) for step in reversed(steps)]

  def predictions(self, task: str, step: int, suffix: str = '') -> epath.Path:
    """Returns the file of what was predicted for a task's examples; a suffix tells capacities apart."""
    return self.path / 'predictions' / task / f'{step}{suffix}.jsonl'


def owner_beside(path: str | os.PathLike[str]) -> epath.Path:
  """Returns the place of the claim on an output file."""
  return epath.Path(f'{os.fspath(path)}.{OWNER}')


def split_step(path: str | os.PathLike[str]) -> tuple[ModelDir, int | None]:
  """Returns the MODEL_DIR of a path to it or to `MODEL_DIR/checkpoints/<step>`, and the step that it names."""
  folder = epath.Path(path)
  if folder.parent.name == CHECKPOINTS and folder.name.isdecimal():
    return ModelDir(folder.parent.parent), int(folder.name)
  return ModelDir(folder), None


def _steps_in(names: Iterable[str]) -> list[int]:
  """Returns the numbers among names, as they are written for steps, in rising order."""
  return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def _is_held_out(line: dict[str, Any]) -> bool:
  return any(name.startswith('cross_ent_loss') for name in line)
