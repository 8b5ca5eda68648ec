"""JSON objects of files that others wrote: read whole or refused, and each field taken with its type and its range.

Files may be damaged, or made to harm. Whatever stands in them, a reader gets values it can compute with, or one
`ConfigError` that says which file, what was got, the rule and the remedy.
"""

import dataclasses
import json
import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from switch_jax.config import ConfigError, first_line
from switch_jax.folders.regular_files import regular_file

# What is parsed at most: Python's objects take about ten times the bytes of their text. Known files are under 20 MB.
MAX_BYTES = 64 * 2**20
# No axis of an array is longer, and no array has more values: both fit whatever computes with them.
MAX_AXIS, MAX_VALUES = 2**40, 2**48
_REQUIRED: Any = object()
_AGAIN = 'the copy is damaged. Copy it again.'

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = 60


def shown(value: Any) -> str:
  """Returns a value for a message: one line, shortened, however deep or long it is."""
  return _shortened.repr(value)


def parse(raw: bytes, where: str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
  """Returns the JSON object of a file's bytes.

  Args:
    raw: the bytes.
    where: the file, for messages.
    max_bytes: that it may have.

  Raises:
    ConfigError: it is too long, no UTF-8, no JSON, no object, nested too deeply, or names a key twice.
  """
  if len(raw) > max_bytes:
    raise ConfigError(f'{where} has more than {max_bytes:,} bytes, which is no file of settings. Copy it again.')
  try:
    content = json.loads(raw.decode('utf-8'), object_pairs_hook=_without_duplicates)
  except (ValueError, RecursionError) as error:
    raise ConfigError(
      f'{where} is not valid JSON ({first_line(error)}); the copy is incomplete. Copy it again.'
    ) from error
  if not isinstance(content, dict):
    raise ConfigError(
      f'{where} holds a {type(content).__name__}; it must be an object with named settings. Copy it again.'
    )
  return content


def read(folder: str | os.PathLike[str], name: str) -> dict[str, Any]:
  """Returns the JSON object in a file of a folder, local or `gs://`.

  Raises:
    ConfigError: as `parse`; or it is no regular file in that folder, or cannot be read.
    FileNotFoundError: it is not there.
  """
  where = epath.Path(folder) / name
  path = where if '://' in os.fspath(folder) else regular_file(folder, name)
  try:
    with path.open('rb') as file:
      return parse(file.read(MAX_BYTES + 1), str(where))
  except FileNotFoundError:
    raise
  except OSError as error:
    raise ConfigError(f'{where} cannot be read ({first_line(error)}); see to its rights, or copy it again.') from error


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen: set[str] = set()
    twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    raise ValueError(f'the key {shown(twice)} stands in one object twice')
  return found


@dataclasses.dataclass(frozen=True)
class Fields:
  """An object whose fields are taken by type. Without a default a field must be there; null is a value.

  Attributes:
    where: the file, and what in it, for messages.
    values: the object.
  """

  where: str
  values: Mapping[str, Any]

  def _get(self, name: str, default: Any) -> Any:
    if name in self.values:
      return self.values[name]
    if default is _REQUIRED:
      raise ConfigError(f'{self.where} has no {name}; {_AGAIN}')
    return default

  def wrong(self, name: str, rule: str) -> ConfigError:
    """Returns the error that a field breaks a rule."""
    return ConfigError(f'{self.where}: {name} is {shown(self.values.get(name))}; it must be {rule}, so {_AGAIN}')

  def integer(self, name: str, default: Any = _REQUIRED, minimum: int = 0, maximum: int = MAX_AXIS) -> Any:
    """Returns an integer in a range."""
    value = self._get(name, default)
    if name in self.values and not _is_integer(value, minimum, maximum):
      raise self.wrong(name, f'an integer from {minimum} to {maximum}')
    return value

  def number(self, name: str, default: Any = _REQUIRED, minimum: float = 0.0, below: float = math.inf) -> Any:
    """Returns a finite number of at least `minimum`, less than `below`."""
    value = self._get(name, default)
    if name in self.values:
      is_number = isinstance(value, int | float) and not isinstance(value, bool)
      if not (is_number and minimum <= value < min(below, 1e300)):
        limit = f' and less than {below:g}' if below < math.inf else ''
        raise self.wrong(name, f'a number of at least {minimum:g}{limit}')
    return value

  def boolean(self, name: str, default: Any = _REQUIRED) -> Any:
    """Returns true or false."""
    value = self._get(name, default)
    if name in self.values and not isinstance(value, bool):
      raise self.wrong(name, 'true or false')
    return value

  def text(self, name: str, default: Any = _REQUIRED) -> Any:
    """Returns a string."""
    value = self._get(name, default)
    if name in self.values and not isinstance(value, str):
      raise self.wrong(name, 'a string')
    return value

  def object(self, name: str, default: Any = _REQUIRED) -> 'Fields':
    """Returns the fields of an object within."""
    value = self._get(name, default)
    if not isinstance(value, Mapping):
      raise self.wrong(name, 'an object')
    return Fields(f'{self.where}: {name}', value)

  def sizes(self, name: str, default: Any = _REQUIRED, minimum: int = 0) -> tuple[int, ...]:
    """Returns the lengths of an array's axes."""
    value = self._get(name, default)
    if not (
      isinstance(value, list | tuple)
      and len(value) <= 32
      and all(_is_integer(size, minimum, MAX_AXIS) for size in value)
      and math.prod(value) <= MAX_VALUES
    ):
      raise self.wrong(name, f'a list of sizes from {minimum} to {MAX_AXIS}, {MAX_VALUES} values at most')
    return tuple(value)


def _is_integer(value: Any, minimum: int, maximum: int) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum
