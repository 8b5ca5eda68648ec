"""The one reading of tables: CSV, TSV, JSON lines, Parquet, and the folders that the library `datasets` saves.

Rows come with the line or number they have in their file, one after the other, so that a table may be larger than
memory. What a cell means is not decided here, but for the numbers of a `ClassLabel` of `datasets`, which become names.
Text is read as all text is (`text_lines`). No TensorFlow here.
"""

import contextlib
import csv
import io
import itertools
import json
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from switch_jax.config import ConfigError, first_line
from switch_jax.data import text_lines
from switch_jax.folders.remote import is_remote

TEXT_SUFFIXES = ('.csv', '.tsv', '.jsonl')
BINARY_SUFFIXES = ('.parquet', '.arrow')
SUFFIXES = (*TEXT_SUFFIXES, *BINARY_SUFFIXES)
_MAX_CELL = 2**24  # characters; Python's own limit is 131,072
_ROWS_TOGETHER = 1024


class Row(NamedTuple):
  """A row of a table.

  Attributes:
    number: the line it ends in, or its number in a file without lines, from 1.
    cells: by column; None if it is malformed.
    error: what is wrong with it then.
  """

  number: int
  cells: dict[str, Any] | None
  error: str = ''


def is_table(path: epath.Path) -> bool:
  """Whether a file is read here rather than line by line as JSON."""
  return path.suffix in SUFFIXES and path.suffix != '.jsonl'


def split_folders(path: epath.Path) -> list[str] | None:
  """Returns the splits of a `DatasetDict` folder of the library `datasets`; None for anything else.

  Raises:
    ConfigError: its list of splits cannot be read.
  """
  listing = path / 'dataset_dict.json'
  if not listing.exists():
    return None
  try:
    return [str(name) for name in json.loads(listing.read_text())['splits']]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ConfigError(
      f'{listing} does not list the splits of a data set ({first_line(error)}); copy the folder again, or name a '
      f'split: {path}/train.'
    ) from error


def arrow_files(folder: epath.Path) -> list[epath.Path]:
  """Returns the files of a folder that the library `datasets` has saved, in their order.

  Raises:
    ConfigError: it is no such folder, or it has a selection of rows that was not written out.
  """
  try:
    state = json.loads((folder / 'state.json').read_text())
    files = [folder / file['filename'] for file in state['_data_files']]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ConfigError(
      f'{folder} is a folder that the library datasets has not saved ({first_line(error)}); name the files in it, as '
      f'{folder}/*.csv, or save it with save_to_disk.'
    ) from error
  if state.get('_indices_data_files'):
    raise ConfigError(f'{folder} is a selection of rows by an old release of datasets; save it with flatten_indices().')
  return files


def read_columns(path: epath.Path, undecodable: str = 'refuse') -> dict[str, str]:
  """Returns the columns of a file, each with its type; of text files that of all is empty.

  Raises:
    ConfigError: the file has no header or no row, or is not of its kind.
  """
  if path.suffix in BINARY_SUFFIXES:
    with _open_arrow(path) as (schema, _):
      return {field.name: str(field.type) for field in schema}
  if path.suffix == '.jsonl':
    first = next(read_rows(path, undecodable), None)
    if first is None:
      raise ConfigError(f'{path} has no row; remove it, or put one in.')
    if first.cells is None:
      raise ConfigError(f'{path}:{first.number} {first.error}; each line must be an object with the cells by name.')
    return dict.fromkeys(first.cells, '')
  return dict.fromkeys(next(_read_delimited(path, undecodable)), '')


def read_rows(path: epath.Path, undecodable: str = 'refuse') -> Iterator[Row]:
  """Yields the rows of a file; blank lines are passed over. What `undecodable` is: `text_lines.decode_line`.

  Raises:
    ConfigError: the file is not of its kind, or no UTF-8 text (`text_lines.EncodingError`).
  """
  if path.suffix in BINARY_SUFFIXES:
    yield from _read_arrow(path)
  elif path.suffix == '.jsonl':
    yield from _read_json(path, undecodable)
  else:
    rows = _read_delimited(path, undecodable)
    next(rows)
    yield from rows


def _read_json(path: epath.Path, undecodable: str) -> Iterator[Row]:
  for number, line in enumerate(text_lines.read_decoded(path, undecodable), start=1):
    if not line.strip():
      continue
    try:
      value = json.loads(line)
    except (ValueError, RecursionError) as error:
      yield Row(number, None, f'is not JSON ({first_line(error)})')
      continue
    yield Row(number, value) if isinstance(value, dict) else Row(number, None, f'is {value!r}'[:80] + ' and no object')


def _read_delimited(path: epath.Path, undecodable: str) -> Iterator[Any]:
  """Yields the names of the columns, then the rows."""
  csv.field_size_limit(_MAX_CELL)
  lines = text_lines.read_decoded(path, undecodable)
  first = next((line for line in lines if line.strip()), None)
  if first is None:
    raise ConfigError(f'{path} is empty; its first line must name the columns.')
  reader = csv.reader(
    (f'{line}\n' for line in itertools.chain([first], lines)), delimiter=_delimiter(path, first), strict=True
  )
  try:
    names = [name.strip() for name in next(reader)]
    # What pandas writes without index=False begins with a column that has no name.
    columns = [name or f'column {i}' for i, name in enumerate(names, start=1)]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
      raise ConfigError(f'{path} has the column {twice[0]!r} twice; give each a name of its own.')
    yield columns
    for cells in reader:
      if len(cells) == len(columns):
        yield Row(reader.line_num, dict(zip(columns, cells, strict=True)))
      elif cells:
        yield Row(
          reader.line_num,
          None,
          f'has {len(cells)} cells, and the header has {len(columns)} columns; a cell with a delimiter or a newline in '
          'it stands in double quotes',
        )
  except csv.Error as error:
    raise ConfigError(
      f'{path}:{reader.line_num} is no {path.suffix[1:].upper()} ({error}); a cell with a quote in it stands in double '
      'quotes, and each quote in it twice.'
    ) from error


def _delimiter(path: epath.Path, header: str) -> str:
  """Returns what separates cells; spreadsheets of many countries write semicolons into .csv files."""
  if path.suffix == '.tsv':
    return '\t'
  return ',' if ',' in header else next((sign for sign in ';\t|' if sign in header), ',')


@contextlib.contextmanager
def _open_arrow(path: epath.Path) -> Iterator[tuple[Any, Callable[[], Iterable[Any]]]]:
  """Opens a Parquet or Arrow file: its schema, and a function that gives its record batches."""
  pyarrow = _import_pyarrow()
  with path.open('rb') as opened:
    file = io.BufferedReader(_Remote(opened)) if is_remote(path) else opened
    try:
      if path.suffix == '.parquet':
        parquet = pyarrow.parquet.ParquetFile(file)
        yield parquet.schema_arrow, lambda: parquet.iter_batches(_ROWS_TOGETHER)
      else:
        stream = pyarrow.ipc.open_stream(file)
        yield stream.schema, lambda: stream
    except (pyarrow.ArrowException, OSError) as error:
      raise ConfigError(f'{path} cannot be read as {path.suffix[1:]} ({first_line(error)}); write it again.') from error


class _Remote(io.RawIOBase):
  """An object of a bucket as a file of Python's, which pyarrow wants."""

  def __init__(self, file: Any):
    self._file = file

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    self._file.seek(offset, whence)
    return self.tell()

  def tell(self) -> int:
    return self._file.tell()

  def readinto(self, buffer: Any) -> int:
    data = self._file.read(len(buffer))
    buffer[: len(data)] = data
    return len(data)


def _import_pyarrow() -> types.ModuleType:
  try:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet
  except ImportError as error:
    raise ConfigError(f'Parquet and Arrow files are read with pyarrow ({error}); pip install pyarrow.') from error
  return pyarrow


def _class_names(schema: Any) -> dict[str, Sequence[str]]:
  """Returns the names of the `ClassLabel` columns of a file that the library `datasets` wrote."""
  try:
    features = json.loads(schema.metadata[b'huggingface'])['info']['features']
    return {name: kind['names'] for name, kind in features.items() if kind.get('_type') == 'ClassLabel'}
  except (TypeError, KeyError, ValueError, AttributeError):
    return {}


def _read_arrow(path: epath.Path) -> Iterator[Row]:
  numbers = itertools.count(1)
  with _open_arrow(path) as (schema, batches):
    named = _class_names(schema)
    for batch in batches():
      for cells in batch.to_pylist():
        for name, names in named.items():
          if isinstance(number := cells[name], int):  # -1 is a label that is withheld
            cells[name] = names[number] if 0 <= number < len(names) else None
        yield Row(next(numbers), cells)
