"""Results of a study as data: what each finished run came to, and of which code, versions and text it is."""

import collections
import dataclasses
import json
import math
import pathlib
import re
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from studies import flops
from studies.curves import Curve
from switch_jax.folders.model_dir import ModelDir
from switch_jax.sweep.runner import code_digest

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / 'results'
LOSS, DROPPED, LARGEST_LOAD = 'cross_ent_loss_text', 'fraction_dropped', 'expert_load_max_over_mean'
# Means over the last tenth of the logged steps.
_TRAINED = (DROPPED, LARGEST_LOAD, LOSS)
_HELD_OUT = ('example_accuracy',)
_GROUP_LOSS, _GROUP_TOKENS = 'cross_ent_loss/', 'target_tokens/'
_PACKAGES = ('jax', 'flax', 'optax', 'numpy')
_LIST = re.compile(r'\[([^\[\]{}]*)\]')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What a run came to.

  Attributes:
    curve: steps and held-out losses in nats a target token.
    trained: means of training's metrics over the last tenth of the logged steps.
    held_out: other metrics of the last evaluation: `example_accuracy` is the share of the targets that are right from
      end to end, of tasks that have metrics.
    groups: of tasks with groups (languages), by name the held-out losses after the steps of `curve`.
    group_tokens: by group, the target tokens that these losses are means of.
    parameters: how many.
    flops: forward FLOPs a target token.
    seconds: it took, on the machine that it ran on.
  """

  curve: Curve
  trained: Mapping[str, float]
  held_out: Mapping[str, float]
  parameters: int
  flops: float
  seconds: float
  groups: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
  group_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)

  @property
  def last(self) -> float:
    """The held-out loss after the last step; infinity for no number."""
    return math.inf if math.isnan(loss := self.curve[-1][1]) else loss

  def group_curve(self, group: str) -> Curve:
    """Returns steps and held-out losses of a group."""
    return [(step, loss) for (step, _), loss in zip(self.curve, self.groups[group], strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
  """What there is of a study.

  Attributes:
    study: its name.
    code: sha256 of the package's sources that all runs are of.
    commit: that was checked out when the results were read, and `+` where files differed from it; empty if the runs
      are of other code.
    versions: of the packages that the runs were made with.
    corpus: digest of the text.
    runs: by point and seed.
    device: what JAX calls that on which the runs were made.
  """

  study: str
  code: str
  commit: str
  versions: Mapping[str, str]
  corpus: str
  runs: Mapping[str, Mapping[int, Run]]
  device: str = 'cpu'

  def seeds(self, points: Sequence[str]) -> list[int]:
    """Returns the seeds that all of these points have, of this study."""
    return sorted(set.intersection(*(set(self.runs.get(point, {})) for point in points)))

  def pairs(self, slow: str, fast: str) -> list[tuple[Run, Run]]:
    """Returns the runs of two points, by the seeds that both have."""
    return [(self.runs[slow][seed], self.runs[fast][seed]) for seed in self.seeds((slow, fast))]


def _finished(folder: pathlib.Path) -> Iterator[tuple[str, int, pathlib.Path, dict[str, Any]]]:
  """Yields point, seed, folder and what the sweep recorded of every finished run."""
  for path in sorted(folder.glob('*,RANDOM_SEED=*')):
    if (place := ModelDir(path).finished).exists():
      point, _, seed = path.name.rpartition(',RANDOM_SEED=')
      yield point, int(seed), path, json.loads(place.read_text())


def read_runs(study: str, out: pathlib.Path) -> tuple[Results | None, list[str]]:
  """Reads the finished runs of a study.

  Args:
    study: its name.
    out: the folder of all studies' runs.

  Returns:
    The results, None without any; and what has to be said of runs that are left out, since they are of another version
    of the code or of another text than most.
  """
  found = list(_finished(out / study))
  if not found:
    return None, []
  kinds = {path: (record.get('code', ''), _corpus(path)) for _, _, path, record in found}
  most = collections.Counter(kinds.values()).most_common(1)[0][0]
  runs: dict[str, dict[int, Run]] = {}
  for point, seed, path, record in found:
    if kinds[path] == most:
      runs.setdefault(point, {})[seed] = _read(path, record)
  others = sorted(path.name for path, kind in kinds.items() if kind != most)
  notes = []
  if others:
    notes.append(
      f'{study}: {len(others)} of {len(found)} runs are of another version of the code or of another text and are left '
      f'out ({", ".join(others)}); --fresh makes them again.'
    )
  made_with = [_made_with(path) for path in kinds if kinds[path] == most]
  facts = {
    'commit': _commit(most[0]),
    'versions': {package: _all(made['packages'].get(package, '') for made in made_with) for package in _PACKAGES},
    'device': _all(made['device'] for made in made_with),
  }
  return Results(study=study, code=most[0], corpus=most[1], runs=runs, **facts), notes


def _made_with(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what a run says of where it was made; of older ones it is not known."""
  return ModelDir(folder).read_newest_config()[0].get('made_with', {'device': '', 'packages': {}})


def _all(values: Iterable[str]) -> str:
  """Returns all different values as one text."""
  return ' and '.join(sorted({value or 'not recorded' for value in values}))


def _corpus(folder: pathlib.Path) -> str:
  steps = ModelDir(folder).numbered_steps()
  position = ModelDir(folder).step(steps[-1]) / 'data' / 'position.json'
  return json.loads(position.read_text())['fingerprint']['corpus']


def _read(folder: pathlib.Path, record: Mapping[str, Any]) -> Run:
  place = ModelDir(folder)
  (task,) = place.tasks()
  lines = place.read_train()
  last = lines[-max(len(lines) // 10, 1) :]
  trained = {name: statistics.fmean(line[name] for line in last) for name in _TRAINED if name in lines[-1]}
  evaluations = place.read_held_out(task)
  groups = [name.removeprefix(_GROUP_TOKENS) for name in evaluations[-1] if name.startswith(_GROUP_TOKENS)]
  return Run(
    curve=tuple((line['step'], line[LOSS]) for line in evaluations),
    trained=trained,
    held_out={name: evaluations[-1][name] for name in _HELD_OUT if name in evaluations[-1]},
    parameters=place.read_newest_config()[0]['parameters'],
    flops=flops.per_target_token(record['arguments']),
    seconds=record['seconds'],
    groups={group: [round(line[f'{_GROUP_LOSS}{group}'], 5) for line in evaluations] for group in groups},
    group_tokens={group: int(evaluations[-1][f'{_GROUP_TOKENS}{group}']) for group in groups},
  )


def _commit(code: str) -> str:
  """Returns the commit that is checked out if the runs are of its code, else nothing."""

  def git(*arguments: str) -> str:
    try:
      done = subprocess.run(['git', *arguments], cwd=HERE, capture_output=True, text=True, check=False)
    except FileNotFoundError:
      return ''
    return done.stdout.strip() if not done.returncode else ''

  if code != code_digest():
    return ''
  return git('rev-parse', '--short=12', 'HEAD') + ('+' if git('status', '--porcelain') else '')


def write(results: Results, folder: pathlib.Path = RESULTS) -> pathlib.Path:
  """Writes `STUDY.json`; returns its path."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f'{results.study}.json'
  path.write_text(json_text(dataclasses.asdict(results)), encoding='utf-8')
  return path


def json_text(value: Any) -> str:
  """Returns JSON with every list of numbers on one line: easier to compare than one number a line."""
  on_a_line = lambda found: f'[{" ".join(found[1].split())}]'  # noqa: E731
  return _LIST.sub(on_a_line, json.dumps(value, indent=1)) + '\n'


def load(study: str, folder: pathlib.Path = RESULTS) -> Results | None:
  """Returns the results of a study, None if it has none."""
  path = folder / f'{study}.json'
  if not path.exists():
    return None
  found = json.loads(path.read_text(encoding='utf-8'))
  runs = {
    point: {int(seed): Run(**{**run, 'curve': tuple(map(tuple, run['curve']))}) for seed, run in seeds.items()}
    for point, seeds in found['runs'].items()
  }
  return Results(**{**found, 'runs': runs})
