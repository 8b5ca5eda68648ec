"""Which files, columns and labels make examples of a table: what is configured, and guessed where nothing is."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from switch_jax.config import ConfigError, TableConfig
from switch_jax.data import tables, templates, text_lines
from switch_jax.tasks import hub_tables, user_files

BUILDER_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """What makes examples of the rows of a table.

  Attributes:
    train, held_out: files; without any held out, a share of the rows is.
    template: of the inputs.
    target: the column of the targets.
    labels: what stands in the table to the label that it means; None takes what stands there.
    guessed: what was not said, and the setting that says it.
    skip_empty: leave out rows with an empty cell.
    undecodable: see `text_lines.decode_line`.
  """

  train: tuple[epath.Path, ...]
  held_out: tuple[epath.Path, ...]
  template: str
  target: str
  labels: Mapping[str, str] | None
  guessed: tuple[str, ...]
  skip_empty: bool
  undecodable: str = 'refuse'

  def identity(self) -> dict[str, Any]:
    """Returns plain values that decide which examples come out."""
    replaced = {} if self.undecodable == 'refuse' else {'undecodable': self.undecodable}
    return replaced | {
      'builder': BUILDER_VERSION,
      'files': user_files.identify(list(self.train)),
      'held_out_files': user_files.identify(list(self.held_out)),
      'template': self.template,
      'target': self.target,
      'labels': self.labels and dict(self.labels),
      'skip_empty': self.skip_empty,
    }


def find_files(table: TableConfig) -> tuple[list[epath.Path], list[epath.Path]]:
  """Returns the files that are trained on and those that are held out; none of these where rows are.

  Raises:
    ConfigError: a pattern matches nothing that can be read, and is no data set of the hub that can be had.
  """
  train, own_held_out = _expand(table.files, 'files', 'TASK_FILES')
  if table.validation_files is None:
    return train, own_held_out
  return train, _expand(table.validation_files, 'validation_files', 'VALIDATION_FILES')[0]


def _expand(pattern: str, field: str, macro: str) -> tuple[list[epath.Path], list[epath.Path]]:
  """Returns files to train on and, of a `DatasetDict` with a validation split, to hold out."""
  setting, train, held_out = f'TableConfig.{field}', [], []
  name = hub_tables.name_of(pattern)
  matched = [] if pattern.startswith('hf://') else user_files.matches(pattern, setting)
  if not matched and name:
    matched = [hub_tables.folder_of(name, setting, macro)]
  for path in matched:
    if not path.is_dir():
      train.append(path)
    elif splits := tables.split_folders(path):
      if 'train' not in splits:
        raise ConfigError(f'{path} has the splits {", ".join(splits)} and no train; name one: {path}/{splits[0]}.')
      train += tables.arrow_files(path / 'train')
      held_out += tables.arrow_files(path / 'validation') if 'validation' in splits else []
    elif (path / 'state.json').exists():
      train += tables.arrow_files(path)
    else:
      train.append(path)
  return user_files.check_files(train, pattern, setting, tables.SUFFIXES, macro), held_out


def make_recipe(table: TableConfig) -> Recipe:
  """Returns what makes examples of a table; looks at the columns of its files, not at the rows.

  Raises:
    ConfigError: there are no files, a column or field is not there, the columns cannot be guessed, or Parquet files
      differ in the type of a column.
  """
  train, held_out = find_files(table)
  files = [*train, *held_out]
  try:
    columns = {path: tables.read_columns(path, table.undecodable) for path in files}
  except text_lines.EncodingError:
    check_encodings(files, table.undecodable)
    raise
  template, target, guessed = _choose_columns(table, list(columns[files[0]]), files[0])
  asked = (
    ('TEMPLATE' if table.template else 'INPUT_COLUMN', templates.fields_of(template)),
    ('TARGET_COLUMN', [target]),
  )
  for path in files:
    for what, names in asked:
      templates.check_columns(what, names, list(columns[path]), str(path))
  used = [*templates.fields_of(template), target]
  _check_types({path: {name: columns[path][name] for name in used} for path in files})
  if target in templates.fields_of(template):
    raise ConfigError(
      f'the column {target!r} is both inputs and targets; set --gin.INPUT_COLUMN (or TEMPLATE) and --gin.TARGET_COLUMN '
      f'to different ones of {", ".join(map(repr, columns[files[0]]))}.'
    )
  return Recipe(
    train=tuple(train),
    held_out=tuple(held_out),
    template=template,
    target=target,
    labels=_label_names(table),
    guessed=tuple(guessed),
    skip_empty=table.skip_empty,
    undecodable=table.undecodable,
  )


def _choose_columns(table: TableConfig, columns: list[str], path: epath.Path) -> tuple[str, str, list[str]]:
  """Returns template, target column, and what of both was guessed from the columns of the first file.

  Raises:
    ConfigError: they cannot be guessed, or the target column is not there.
  """
  guessed = []
  if table.target_column is not None:
    templates.check_columns('TARGET_COLUMN', [table.target_column], columns, str(path))
  source, target = templates.guess(columns, table.target_column)
  if table.target_column is None and target is not None:
    guessed.append(f'TARGET_COLUMN={target}')
  template = table.template
  if template is None and (source := table.input_column or source) is not None:
    template = templates.of_column(source)
    if table.input_column is None:
      guessed.append(f'INPUT_COLUMN={source}')
  listed = ', '.join(map(repr, columns))
  if target is None:
    raise ConfigError(
      f'{path} has the columns {listed}, and none has a name that targets usually have; set --gin.TARGET_COLUMN; '
      'the first line of a text file must name the columns.'
    )
  if template is None:
    raise ConfigError(
      f'{path} has the columns {listed}, and which are the inputs cannot be guessed; set --gin.INPUT_COLUMN, or '
      "several by --gin.TEMPLATE='first: {column} second: {other}'."
    )
  return template, target, guessed


def check_encodings(files: Iterable[epath.Path], undecodable: str) -> None:
  """Names all files that are no UTF-8 text; see `text_lines.check_files`."""
  text_lines.check_files((path for path in files if path.suffix in tables.TEXT_SUFFIXES), undecodable)


def _check_types(columns: Mapping[epath.Path, Mapping[str, str]]) -> None:
  """Raises a `ConfigError` where the columns of Parquet and Arrow files differ in what kind of type they have."""
  binary = {path: types for path, types in columns.items() if path.suffix in tables.BINARY_SUFFIXES}
  for path, types in binary.items():
    first, expected = next(iter(binary.items()))
    for name, kind in types.items():
      if _kind(kind) != _kind(expected[name]):
        raise ConfigError(
          f'{path} has another schema than {first}: its column {name!r} is {kind} and not {expected[name]}; write them '
          'alike, or narrow the pattern.'
        )


def _kind(name: str) -> str:
  if 'string' in name:
    return 'string'
  return re.sub(r'^u?int\d+$', 'int', re.sub(r'^(half)?float$|^double$', 'float', name))


def _label_names(table: TableConfig) -> dict[str, str] | None:
  if table.labels is None:
    return None
  if isinstance(table.labels, dict):
    return {str(cell): name for cell, name in table.labels.items()}
  names = {name: name for name in table.labels}
  if not any(name.isdigit() for name in names):
    names |= {str(number): name for number, name in enumerate(table.labels)}
  return names
