"""Which runs a sweep consists of."""

import dataclasses
import re

from switch_jax.config.validation import Checked, suggest

# Not bindings: further gin files of a point, what it is called, and what it takes from other points.
GIN_FILE, NAME, RESULTS = 'gin_file', 'name', 'results'
SEED = 'RANDOM_SEED'
_BINDING = re.compile(r'[A-Za-z_][\w./]*')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(Checked):
  """The points of a sweep: every one of `points` with every combination of `grid` and every one of `seeds`.

  What is bound is a macro (`'NUM_EXPERTS'`) or a field (`'config.MoeConfig.router'`), to a Python literal; a macro of
  the sweep file (`%EXPERTS`) stands for its value. The seeds come outermost, then `points`, then the first name of
  the grid; so the first seed of everything is done first.

  Attributes:
    grid: values of each binding. Under the name `gin_file` each value is a gin file, or a tuple of them, given after
      the base files.
    points: bindings that go together, as `({'NUM_EXPERTS': 4, 'TRAIN_STEPS': 500}, {'NUM_EXPERTS': 8})`. They may have
      a `gin_file` of their own, and a `name` that stands for them in the name of the folder. `results` binds what is a
      path to the MODEL_DIR of another point with the same seed and values of the grid, which is run before:
      `{'name': 'student', 'results': {'TEACHER_PATH': 'teacher'}}`, by its `name`; `'../other/teacher'` is a point of
      another sweep, whose `--out` lies beside this one's.
    seeds: values of RANDOM_SEED.
  """

  grid: dict[str, tuple[object, ...]] = dataclasses.field(default_factory=dict)
  points: tuple[dict[str, object], ...] = ()
  seeds: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require(bool(self.grid or self.points or self.seeds), 'grid', 'nothing varies: bind grid, points or seeds.')
    for name, values in self.grid.items():
      self._check_name('grid', name)
      self.require(name != NAME, 'grid', f'{NAME!r} is for points; values of a grid name themselves.')
      self.require(len(values) > 0, 'grid', f'{name} has no value; give at least one.')
      distinct = {repr(value) for value in values}
      self.require(len(distinct) == len(values), 'grid', f'{name} has a value twice; name each once.')
      if name == GIN_FILE:
        self._check_files('grid', values)
    for point in self.points:
      for name, value in point.items():
        self._check_name('points', name)
        self.require(name not in self.grid, 'points', f'{name} is in the grid too; bind it in one of them.')
        if name == GIN_FILE:
          self._check_files('points', (value,))
        if name == RESULTS:
          self._check_results(point)
        rule = f'a name is a text that is not empty, and one is {value!r}.'
        self.require(name != NAME or bool(isinstance(value, str) and value), 'points', rule)
    self.require(len(set(self.seeds)) == len(self.seeds), 'seeds', 'name each seed once.')
    self.require(RESULTS not in self.grid, 'grid', f'{RESULTS!r} is for points; bind it in one of SweepConfig.points.')
    rule = f'the grid or a point binds {SEED} too; bind it in one of them.'
    bound = set(self.grid).union(*self.points)
    self.require(not self.seeds or SEED not in bound, 'seeds', rule)

  def _check_name(self, field: str, name: str) -> None:
    rule = f'{name!r} is no binding; write NUM_EXPERTS or config.MoeConfig.router, say.'
    self.require(bool(_BINDING.fullmatch(name)), field, rule)
    self.require(name != 'MODEL_DIR', field, 'MODEL_DIR is not bound: each point has its own, under --out.')

  def _check_results(self, point: dict[str, object]) -> None:
    results, names = point[RESULTS], {str(other[NAME]) for other in self.points if NAME in other}
    rule = f"{RESULTS!r} is {results!r}; write {{'INITIAL_CHECKPOINT_PATH': 'NAME_OF_A_POINT'}}, say."
    self.require(isinstance(results, dict) and bool(results), 'points', rule)
    assert isinstance(results, dict)
    for binding, needed in results.items():
      self.require(isinstance(binding, str) and isinstance(needed, str) and bool(needed), 'points', rule)
      self._check_name('points', binding)
      self.require(binding not in point, 'points', f'a point binds {binding} itself and takes it from {needed!r} too.')
      if '/' not in needed:
        rule = f'a point takes {binding} from {needed!r}, and no point has that name; give that point a name.'
        self.require(needed in names, 'points', f'{rule}{suggest(needed, names)}')

  def _check_files(self, field: str, values: tuple[object, ...]) -> None:
    for value in values:
      files = value if isinstance(value, list | tuple) else (value,)
      rule = f'{GIN_FILE!r} is {value!r}; it must be the path of a gin file, or a tuple of them.'
      self.require(all(isinstance(file, str) and file for file in files), field, rule)
