"""What predictions are made for: JSON lines or the rows of a table, and the model's input of each."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from etils import epath

from switch_jax.config import ConfigError, PredictionConfig
from switch_jax.data import tables, templates
from switch_jax.data.text_lines import read_text_lines


@dataclasses.dataclass(frozen=True)
class Inputs:
  """How the text of a line is made of its object, or of its cells.

  Attributes:
    key: where it stands, unless a template makes it.
    template: what makes it, where the object has all that it names.
    is_asked_for: whether the template was configured, and not taken from the checkpoint: then all lines must have that.
    undecodable: 'replace' puts U+FFFD in place of bytes that are no UTF-8.
  """

  key: str = 'inputs'
  template: str | None = None
  is_asked_for: bool = False
  undecodable: str = 'refuse'

  @classmethod
  def of(cls, config: PredictionConfig, recorded: str | None) -> Self:
    """Returns what a configuration asks for; a key or a template in it comes before what the checkpoint records.

    Raises:
      ConfigError: the template cannot be read.
    """
    if config.template is not None:
      templates.fields_of(config.template)
      return cls(template=config.template, is_asked_for=True, undecodable=config.undecodable)
    if config.inputs_key:
      return cls(config.inputs_key, undecodable=config.undecodable)
    return cls(template=recorded, undecodable=config.undecodable)

  def missing(self, names: Sequence[str]) -> str:
    """Returns what of these names is lacking, in words; the empty string if nothing is."""
    if self.template is not None:
      lacking = [name for name in templates.fields_of(self.template) if name not in names]
      if not lacking:
        return ''
      if self.is_asked_for:
        return f'no {lacking[0]!r}'
    if self.key in names:
      return ''
    return f'no {self.key!r}' + (f' and no {lacking[0]!r} (the inputs are {self.template!r})' if self.template else '')

  def text(self, record: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the text of an object, or else what is wrong with it."""
    if missing := self.missing(list(record)):
      return '', f'{missing} in it (it has {", ".join(map(repr, record)) or "nothing"})'
    fields = templates.fields_of(self.template) if self.template else ()
    if self.template is None or any(name not in record for name in fields):
      value = record[self.key]
      return (value, '') if isinstance(value, str) else ('', f'{self.key!r} is {_shown(value)}, which is no string')
    cells = {}
    for name in fields:
      try:
        cell = templates.to_text(record[name])
      except ValueError as error:
        return '', f'{name!r} is {error}'
      if cell is None:
        return '', f'nothing in {name!r}'
      cells[name] = cell
    return templates.fill(self.template, cells), ''


def _shown(value: Any) -> str:
  return json.dumps(value)[:40]


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of the input.

  Attributes:
    number: in the file, from 1.
    record: the object to which prediction and score are added; None if the line is malformed.
    text: the model's input.
    error: what is wrong with a malformed line.
  """

  number: int
  record: dict[str, Any] | None
  text: str = ''
  error: str = ''


def read_line(number: int, line: str, inputs: Inputs, added: Sequence[str] = ()) -> Line:
  """Reads an object with what the inputs are made of, or a bare string.

  Args:
    number: of the line.
    line: its text.
    inputs: how its input is made.
    added: names that the output adds, which the object must not have.
  """
  try:
    # What is not JSON, or cannot be written again as it is, is malformed: NaN, 1e999, half a surrogate pair.
    value = json.loads(line, parse_constant=_no_constant)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode('utf-8')
  except UnicodeEncodeError as error:
    return Line(number, None, error=f'half a surrogate pair ({error.object[error.start]!a}), which no text has')
  except RecursionError:
    return Line(number, None, error='no JSON (it is nested too deeply)')
  except ValueError as error:
    return Line(number, None, error=f'no JSON ({error}); a text alone stands in double quotes')
  if isinstance(value, str):
    value = {inputs.key: value}
  if not isinstance(value, dict):
    return Line(number, None, error=f'{type(value).__name__} in place of an object')
  text, error = inputs.text(value)
  if error:
    return Line(number, None, error=error)
  if taken := [name for name in added if name in value]:
    names = ', '.join(map(repr, taken))
    return Line(
      number, None, error=f'it has {names}, which would be overwritten; choose another name for what is added'
    )
  return Line(number, value, text)


def _no_constant(name: str) -> None:
  raise ValueError(f'{name} is no JSON value')


def read_lines(path: epath.Path, inputs: Inputs, added: Sequence[str] = ()) -> Iterator[Line]:
  """Yields the lines of a file, as training reads them; blank ones are passed over, and so is a byte order mark.

  Raises:
    ConfigError: it is no UTF-8 text from the beginning on (UTF-16, compressed), or a table that cannot be read.
  """
  if tables.is_table(path):
    yield from _read_rows(path, inputs)
    return
  for number, line in enumerate(read_text_lines(path), 1):
    if not line.raw.strip():
      continue
    try:
      text = line.text(inputs.undecodable)
      yield read_line(number, text, inputs, added)
    except UnicodeDecodeError as error:
      yield Line(number, None, error=f'no UTF-8 ({error})')


def check_table(path: epath.Path, inputs: Inputs, added: Sequence[str]) -> None:
  """Raises a `ConfigError` if a table lacks columns that inputs are made of, or has one that would be overwritten."""
  if not tables.is_table(path):
    return
  columns = list(tables.read_columns(path, inputs.undecodable))
  if missing := inputs.missing(columns):
    raise ConfigError(
      f'{path} has {missing} among its columns {", ".join(map(repr, columns))}; set --gin.INPUTS_KEY to one of them, '
      "or --gin.TEMPLATE='review: {column}' to what the model was trained on."
    )
  if taken := [name for name in added if name in columns]:
    raise ConfigError(
      f'{path} has the column {taken[0]!r}, which would be overwritten; set --gin.PREDICTION_FIELD and '
      '--gin.SCORE_FIELD to other names.'
    )


def _read_rows(path: epath.Path, inputs: Inputs) -> Iterator[Line]:
  for row in tables.read_rows(path, inputs.undecodable):
    text, error = ('', row.error) if row.cells is None else inputs.text(row.cells)
    record = None if error or row.cells is None else {name: _plain(cell) for name, cell in row.cells.items()}
    yield Line(row.number, record, text, error)


def _plain(cell: Any) -> Any:
  """Returns a cell as a value that JSON has; what it has not becomes text, and NaN null."""
  if isinstance(cell, float) and not math.isfinite(cell):
    return None
  if isinstance(cell, list):
    return [_plain(value) for value in cell]
  if isinstance(cell, dict):
    return {str(name): _plain(value) for name, value in cell.items()}
  return cell if cell is None or isinstance(cell, str | bool | int | float) else str(cell)
