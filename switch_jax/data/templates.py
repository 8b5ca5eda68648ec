"""How the inputs of a row are made of its cells: a text with `{column}` in it; and which columns are meant by none.

Training, evaluation and prediction all make inputs here, so that a model sees rows as it was trained on them.
"""

import datetime
import decimal
import math
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from switch_jax.config import ConfigError, suggest
from switch_jax.data.corpus import plain_text

# In the order of preference; compared without case.
_INPUTS = (
  *('inputs', 'input', 'text', 'texts', 'sentence', 'review', 'comment', 'message', 'document', 'article', 'content'),
  *('body', 'question', 'prompt', 'source', 'description', 'utterance', 'tweet', 'post', 'title'),
)
_TARGETS = (
  *('targets', 'target', 'label', 'labels', 'class', 'category', 'sentiment', 'topic', 'intent', 'tag', 'score'),
  *('rating', 'answer', 'output', 'summary', 'translation', 'response', 'completion', 'y'),
)


def fields_of(template: str, setting: str = 'TEMPLATE') -> tuple[str, ...]:
  """Returns the columns that a template names, each once.

  Args:
    template: text with `{column}` in it; a brace that is meant stands twice.
    setting: where it was given, for the message.

  Raises:
    ConfigError: it has a brace without its other, or names no column.
  """
  try:
    fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(template) if name is not None]
  except ValueError as error:
    raise ConfigError(
      f"{setting} is {template!r}, which cannot be read ({error}); write columns as {{column}}, and a brace as '{{{{'."
    ) from error
  if not fields or any(not name or spec or how for name, spec, how in fields):
    raise ConfigError(f"{setting} is {template!r}; it must name columns, as 'review: {{text}}', without formats.")
  return tuple(dict.fromkeys(name for name, _, _ in fields))


def check_columns(what: str, asked: Iterable[str], columns: Sequence[str], where: str) -> None:
  """Raises a `ConfigError` that names the columns there are, unless all that are asked for are among them."""
  for name in asked:
    if name not in columns:
      raise ConfigError(
        f'{what} asks for the column {name!r}, which {where} does not have; its columns are '
        f'{", ".join(map(repr, columns))}.{suggest(name, columns)}'
      )


def fill(template: str, cells: Mapping[str, str]) -> str:
  """Returns the inputs of a row; white space around them is left out."""
  parts = string.Formatter().parse(template)
  return ''.join(literal + ('' if name is None else cells[name]) for literal, name, _, _ in parts).strip()


def of_column(column: str) -> str:
  """Returns the template that is one column alone.

  Raises:
    ConfigError: a template cannot name such a column.
  """
  if any(sign in column for sign in '{}:!'):
    raise ConfigError(f'the column {column!r} has one of {{ }} : ! in its name; rename it.')
  return f'{{{column}}}'


def guess(columns: Sequence[str], taken: str | None = None) -> tuple[str | None, str | None]:
  """Returns the columns that are likely to be inputs and targets; None where none is.

  Args:
    columns: of the table.
    taken: the target column, where it is known.
  """
  target = taken or _named(_TARGETS, columns)
  others = [column for column in columns if column != target]
  source = _named(_INPUTS, others) or (others[0] if len(others) == 1 else None)
  if target is None and source is not None and len(columns) == 2:
    target = next(column for column in columns if column != source)
  return source, target


def _named(names: Sequence[str], columns: Sequence[str]) -> str | None:
  by_name = {column.strip().lower(): column for column in reversed(columns)}
  return next((by_name[name] for name in names if name in by_name), None)


def to_text(cell: Any) -> str | None:
  """Returns a cell as text; None if it is empty or not a number (NaN).

  Raises:
    ValueError: a list, an object or bytes; the message says which.
  """
  if isinstance(cell, float) and math.isnan(cell):
    return None
  if isinstance(cell, str):
    # A lone surrogate can be written in JSON but in no UTF-8 text.
    text = plain_text(cell).encode('utf-8', errors='replace').decode('utf-8').strip()
    return None if text in ('', 'NaN', 'nan') else text
  if cell is None or isinstance(cell, bool | int | float | decimal.Decimal | datetime.date | datetime.time):
    return None if cell is None else str(cell)
  raise ValueError(f'a {type(cell).__name__}, which is no text')
