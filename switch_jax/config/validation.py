"""How a configuration is checked: types, choices, ranges, and errors that help.

Every configuration class derives from `Checked`, whose `__post_init__` compares each field with its annotation. gin
hands over whatever the file says (`1e3` is a float, `[1, 2]` a list), so a wrong type is caught here and not in a
traceback from the middle of a compilation.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any


class ConfigError(ValueError):
  """A setting that cannot work. The message says what was got, the rule, and the remedy."""


def suggest(name: str, known: Iterable[str]) -> str:
  """Returns ` Did you mean ...?` for the known name nearest to `name`, or the empty string."""
  near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
  return f' Did you mean {near[0]!r}?' if near else ''


def first_line(error: BaseException) -> str:
  """Returns the first line of an error's message, at most 300 characters of it, for a message of our own."""
  text = (str(error).strip().splitlines() or [type(error).__name__])[0]
  if cause := re.search(r"([^:'\"]+) \[os_error_code='\d+'\]", text):
    return cause[1].strip()  # TensorStore says it last, after the names of many files
  return text if len(text) <= 300 else text[:300] + '...'


def field_types(cls: type) -> Mapping[str, Any]:
  """Returns the resolved annotation of every field of a configuration class."""
  hints = typing.get_type_hints(cls)
  return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _describe(hint: Any) -> str:
  """Returns an annotation in words a person can act on."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Literal:
    return 'one of ' + ', '.join(repr(a) for a in args)
  if origin in (typing.Union, types.UnionType):
    return ' or '.join(_describe(a) for a in args)
  if origin is tuple:
    return f'a tuple of {_describe(args[0])}'
  if origin is dict:
    return f'a dict of {_describe(args[0])} to {_describe(args[1])}'
  if hint is type(None):
    return 'None'
  if isinstance(hint, type) and issubclass(hint, Checked):
    return f'a config.{hint.__name__}'
  return {int: 'an integer', float: 'a number', str: 'a string', bool: 'True or False'}.get(hint, str(hint))


_MISMATCH = object()


def _coerce(value: Any, hint: Any) -> Any:
  """Returns `value` as an instance of `hint` (int to float, list to tuple; no number changes), or `_MISMATCH`."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Literal:
    return value if value in args and not isinstance(value, bool) else _MISMATCH
  if origin in (typing.Union, types.UnionType):
    for option in args:
      result = _coerce(value, option)
      if result is not _MISMATCH:
        return result
    return _MISMATCH
  if origin is tuple:
    if not isinstance(value, list | tuple):
      return _MISMATCH
    items = tuple(_coerce(v, args[0]) for v in value)
    return _MISMATCH if _MISMATCH in items else items
  if origin is dict:
    if not isinstance(value, Mapping):
      return _MISMATCH
    table = {_coerce(k, args[0]): _coerce(v, args[1]) for k, v in value.items()}
    return _MISMATCH if _MISMATCH in table or _MISMATCH in table.values() else table
  if hint is float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else _MISMATCH
  if hint is int:
    return value if isinstance(value, int) and not isinstance(value, bool) else _MISMATCH
  return value if isinstance(value, hint) else _MISMATCH


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
  """Base of the configuration classes: frozen, keyword-only, every field's type checked.

  Raises:
    ConfigError: a field has a value that its annotation does not allow.
  """

  def __post_init__(self) -> None:
    for name, hint in field_types(type(self)).items():
      value = getattr(self, name)
      coerced = _coerce(value, hint)
      if coerced is _MISMATCH:
        remedy = ''
        if isinstance(value, float) and value.is_integer():
          remedy = f' Write {int(value)}.'
        elif isinstance(value, str):
          choices = [a for a in typing.get_args(hint) if isinstance(a, str)]
          remedy = suggest(value, choices)
        raise ConfigError(f'{type(self).__name__}.{name} is {value!r}; it must be {_describe(hint)}.{remedy}')
      object.__setattr__(self, name, coerced)

  def require(self, condition: bool, name: str, rule: str) -> None:
    """Raises a `ConfigError` that names the field, its value and the rule, unless the condition holds."""
    if not condition:
      raise ConfigError(f'{type(self).__name__}.{name} is {getattr(self, name)!r}; {rule}')

  def require_at_least(self, minimum: float, *names: str) -> None:
    """Checks that every named field that is not None is at least `minimum`."""
    for name in names:
      value = getattr(self, name)
      self.require(value is None or value >= minimum, name, f'it must be at least {minimum}.')

  def require_positive(self, *names: str) -> None:
    """Checks that every named field that is not None is greater than zero."""
    for name in names:
      value = getattr(self, name)
      self.require(value is None or value > 0, name, 'it must be greater than 0.')

  def require_rate(self, *names: str) -> None:
    """Checks that every named field is in [0, 1)."""
    for name in names:
      self.require(0 <= getattr(self, name) < 1, name, 'a rate must be at least 0 and less than 1.')

  def to_json(self) -> dict[str, Any]:
    """Returns the fields as plain dictionaries, lists, strings and numbers."""

    def plain(value: Any) -> Any:
      if isinstance(value, Checked):
        return value.to_json()
      if isinstance(value, tuple):
        return [plain(v) for v in value]
      if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
      return value

    return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> typing.Self:
    """Builds the class from what `to_json` returned. Unknown names are an error with the nearest real one."""
    hints = field_types(cls)
    values: dict[str, Any] = {}
    for name, value in fields.items():
      if name not in hints:
        raise ConfigError(f'{cls.__name__} has no field {name!r}.{suggest(name, hints)}')
      nested = _nested(hints[name])
      if nested and isinstance(value, list):
        values[name] = [nested.from_json(v) if isinstance(v, Mapping) else v for v in value]
      else:
        values[name] = nested.from_json(value) if nested and isinstance(value, Mapping) else value
    return cls(**values)


def unknown_fields(cls: type[Checked], fields: Mapping[str, Any], below: str = '') -> list[str]:
  """Returns the dotted names in what `to_json` returned, perhaps in another version, that are no fields of a class."""
  hints, unknown = field_types(cls), []
  for name, value in fields.items():
    if name not in hints:
      unknown.append(f'{below}{name}')
    elif isinstance(value, Mapping) and (nested := _nested(hints[name])):
      unknown += unknown_fields(nested, value, f'{below}{name}.')
  return unknown


def _nested(hint: Any) -> type[Checked] | None:
  """Returns the configuration class that a field may hold, or None."""
  options = [hint, *typing.get_args(hint)]
  options += [inner for option in options for inner in typing.get_args(option)]
  return next((h for h in options if isinstance(h, type) and issubclass(h, Checked)), None)
