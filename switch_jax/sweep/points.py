"""The points of a sweep: what each binds, what its folder is called, and its command. Pure functions."""

import dataclasses
import hashlib
import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from switch_jax.config import ConfigError, SweepConfig
from switch_jax.config.sweep import GIN_FILE, NAME, SEED

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
  """

  name: str
  gin_files: tuple[str, ...]
  bindings: dict[str, Any]


def make_points(sweep: SweepConfig) -> list[Point]:
  """Returns the points in the order in which they run: seeds outermost, then `points`, then the grid.

  Raises:
    ConfigError: two points would have the same folder.
  """
  found: dict[str, Point] = {}
  seeds = [{SEED: seed} for seed in sweep.seeds] or [{}]
  for seed, point in itertools.product(seeds, sweep.points or ({},)):
    for values in itertools.product(*sweep.grid.values()):
      chosen = {**point, **dict(zip(sweep.grid, values, strict=True)), **seed}
      bindings = {name: value for name, value in chosen.items() if name not in (GIN_FILE, NAME)}
      name = point_name(point, {k: v for k, v in chosen.items() if k not in point})
      if name in found:
        raise ConfigError(
          f"two points of the sweep would both be called {name}; give those of SweepConfig.points a 'name' each."
        )
      found[name] = Point(name=name, gin_files=_files(chosen.get(GIN_FILE, ())), bindings=bindings)
  return list(found.values())


def _files(value: Any) -> tuple[str, ...]:
  return (value,) if isinstance(value, str) else tuple(value)


def point_name(point: dict[str, Any], others: dict[str, Any]) -> str:
  """Returns the name of a point's folder; it depends on what the point binds and on nothing else of the sweep.

  Args:
    point: one of `SweepConfig.points`; its `name`, if it has one, stands for all of it.
    others: what it binds besides.
  """
  first = [_safe(point[NAME], '=,')] if NAME in point else [_part(*item) for item in point.items()]
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
  point: Point, base_files: Sequence[str], base_bindings: Sequence[str], model_dir: str
) -> tuple[list[str], list[str]]:
  """Returns the gin files and the bindings (`NAME=VALUE`) of a point.

  Args:
    point: what varies.
    base_files: gin files of all points.
    base_bindings: bindings of all points, `NAME=VALUE`.
    model_dir: the point's own MODEL_DIR.
  """
  own = [binding_text(name, value) for name, value in point.bindings.items()]
  return [*base_files, *point.gin_files], [*base_bindings, *own, binding_text('MODEL_DIR', model_dir)]


def main_arguments(
  gin_files: Sequence[str], bindings: Sequence[str], search_paths: str, others: Sequence[str]
) -> list[str]:
  """Returns the arguments of `python -m switch_jax.main`."""
  paths = [f'--gin_search_paths={search_paths}'] if search_paths else []
  return [*(f'--gin_file={file}' for file in gin_files), *paths, *others, *(f'--gin.{b}' for b in bindings)]
