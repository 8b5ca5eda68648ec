"""The points of a sweep: what each binds, what its folder is called, and its command. Pure functions."""

import dataclasses
import hashlib
import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from switch_jax.config import ConfigError, SweepConfig
from switch_jax.config.sweep import GIN_FILE, NAME, RESULTS, SEED

# Most file systems allow 255 bytes.
_MAX_NAME = 160
# Texts that can stand in a name as they are, and could not be taken for another value.
_PLAIN_TEXT = re.compile(r'(?!(?:None|True|False)$)[A-Za-z][A-Za-z0-9_.-]*')
# Texts that gin could not read as anything else.
_NO_LITERAL = re.compile(r'(?!(?:None|True|False)$)[A-Za-z/][A-Za-z0-9_.,:=+/-]*')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
  """One run of a sweep.

  Attributes:
    name: of its folder, made of what it binds: `NUM_EXPERTS=8,RANDOM_SEED=1`.
    gin_files: given after the base files.
    bindings: values by macro or field, in the order in which they are given.
    results: by macro or field, the folder of another point that it is bound to, seen from the folder of all points.
  """

  name: str
  gin_files: tuple[str, ...]
  bindings: dict[str, Any]
  results: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def needs(self) -> tuple[str, ...]:
    """The points of the same sweep that have to be run before."""
    return tuple(name for name in self.results.values() if '/' not in name)


def make_points(sweep: SweepConfig) -> list[Point]:
  """Returns the points in the order in which they run: seeds outermost, then `points`, then the grid; but none before
  those whose results it takes.

  Raises:
    ConfigError: two points would have the same folder, or points wait for each other.
  """
  found: dict[str, Point] = {}
  seeds = [{SEED: seed} for seed in sweep.seeds] or [{}]
  named = {point[NAME]: point for point in sweep.points if NAME in point}
  for seed, point in itertools.product(seeds, sweep.points or ({},)):
    for values in itertools.product(*sweep.grid.values()):
      chosen = {**point, **dict(zip(sweep.grid, values, strict=True)), **seed}
      bindings = {name: value for name, value in chosen.items() if name not in (GIN_FILE, NAME, RESULTS)}
      others = {k: v for k, v in chosen.items() if k not in point}
      name = point_name(point, others)
      if name in found:
        raise ConfigError(
          f"two points of the sweep would both be called {name}; give those of SweepConfig.points a 'name' each."
        )
      results = {binding: _place(str(of), named, others) for binding, of in chosen.get(RESULTS, {}).items()}
      files = _files(chosen.get(GIN_FILE, ()))
      found[name] = Point(name=name, gin_files=files, bindings=bindings, results=results)
  return _needed_first(found)


def _place(needed: str, named: dict[Any, dict[str, Any]], others: dict[str, Any]) -> str:
  """Returns the folder of the point of that name with these other bindings; of another sweep's with this seed."""
  folder, _, name = needed.rpartition('/')
  if folder:
    return f'{folder}/{point_name({NAME: name}, {k: v for k, v in others.items() if k == SEED})}'
  return point_name(named[name], {k: v for k, v in others.items() if k not in named[name]})


def _needed_first(points: dict[str, Point]) -> list[Point]:
  ordered: dict[str, Point] = {}

  def add(point: Point, above: tuple[str, ...]) -> None:
    if point.name in above:
      raise ConfigError(f'points of the sweep wait for each other: {" needs ".join((*above, point.name))}.')
    for name in point.needs:
      add(points[name], (*above, point.name))
    ordered.setdefault(point.name, point)

  for point in points.values():
    add(point, ())
  return list(ordered.values())


def _files(value: Any) -> tuple[str, ...]:
  return (value,) if isinstance(value, str) else tuple(value)


def point_name(point: dict[str, Any], others: dict[str, Any]) -> str:
  """Returns the name of a point's folder; it depends on what the point binds and on nothing else of the sweep.

  Args:
    point: one of `SweepConfig.points`; its `name`, if it has one, stands for all of it.
    others: what it binds besides.
  """
  own = {binding: value for binding, value in point.items() if binding != RESULTS} | point.get(RESULTS, {})
  first = [_safe(point[NAME], '=,')] if NAME in point else [_part(*item) for item in own.items()]
  name = ','.join([*first, *(_part(*item) for item in others.items())]) or 'base'
  if len(name) > _MAX_NAME:
    name = f'{name[: _MAX_NAME - 9]}-{_digest(name)}'
  return name


def _part(binding: str, value: Any) -> str:
  label = binding.removeprefix('config.')
  if binding == GIN_FILE:
    return f'{label}={_safe("+".join(pathlib.PurePath(file).stem for file in _files(value)))}'
  return f'{_safe(label)}={_value_text(value)}'


def _value_text(value: Any) -> str:
  """Returns a value as a part of a file's name; different values of a binding give different texts."""
  if value is None or isinstance(value, bool | int | float):
    return repr(value)
  if isinstance(value, str) and _PLAIN_TEXT.fullmatch(value):
    return value
  text = value if isinstance(value, str) else repr(value).replace(' ', '')
  return f'{_safe(text).strip("_")[:40]}-{_digest(repr(value))}'


def _safe(text: str, also: str = '') -> str:
  """Returns a text with only letters, digits, `_.+-` and `also`, not beginning like a hidden file or a flag."""
  return re.sub(r'^[.-]', '_', re.sub(rf'[^A-Za-z0-9_.+{also}-]+', '_', text))


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode('utf-8')).hexdigest()[:8]


def binding_text(name: str, value: Any) -> str:
  """Returns `NAME=VALUE` as in `--gin.NAME=VALUE`: gin reads exactly this value; a text has quotes where needed."""
  return f'{name}={value if isinstance(value, str) and _NO_LITERAL.fullmatch(value) else repr(value)}'


def point_arguments(
  point: Point, base_files: Sequence[str], base_bindings: Sequence[str], out: str
) -> tuple[list[str], list[str]]:
  """Returns the gin files and the bindings (`NAME=VALUE`) of a point.

  Args:
    point: what varies.
    base_files: gin files of all points.
    base_bindings: bindings of all points, `NAME=VALUE`.
    out: the folder of all points; the point's own MODEL_DIR is in it.
  """
  own = [binding_text(name, value) for name, value in point.bindings.items()]
  own += [binding_text(name, result_folder(out, place)) for name, place in point.results.items()]
  model_dir = result_folder(out, point.name)
  return [*base_files, *point.gin_files], [*base_bindings, *own, binding_text('MODEL_DIR', model_dir)]


def result_folder(out: str, place: str) -> str:
  """Returns the MODEL_DIR of a point, `place` being its folder seen from the folder of all points."""
  folder = out.rstrip('/') or '/'
  while place.startswith('../'):
    folder, place = folder.rpartition('/')[0] or ('/' if folder.startswith('/') else '.'), place.removeprefix('../')
  return f'{folder.rstrip("/")}/{place}'


def main_arguments(
  gin_files: Sequence[str], bindings: Sequence[str], search_paths: str, others: Sequence[str]
) -> list[str]:
  """Returns the arguments of `python -m switch_jax.main`."""
  paths = [f'--gin_search_paths={search_paths}'] if search_paths else []
  return [*(f'--gin_file={file}' for file in gin_files), *paths, *others, *(f'--gin.{b}' for b in bindings)]
