"""The sizes of a checkpoint's files, by which one that is missing or cut short is found before it is read."""

import json
from collections.abc import Iterable, Iterator

from etils import epath

from switch_jax.folders import checked_json


def write_sizes(record: epath.Path, folders: Iterable[str]) -> None:
  """Writes the sizes in bytes of all files that lie in some of the folders beside a record, as JSON."""
  sizes = {}
  for folder in folders:
    for path in _walk(record.parent / folder):
      sizes[str(path.relative_to(record.parent))] = path.stat().length
  record.write_text(json.dumps(sizes, indent=2, sort_keys=True) + '\n')


def check_sizes(record: epath.Path) -> None:
  """Compares the files beside a record with it.

  Raises:
    ValueError: one is missing or has another size, or the record is damaged.
    OSError: something cannot be read.
  """
  for name, size in checked_json.read(record.parent, record.name).items():
    path = record.parent / name
    found = path.stat().length if path.exists() else None
    if found != size:
      raise ValueError(f'{name} ' + ('is missing' if found is None else f'has {found} bytes, not {size}'))


def _walk(directory: epath.Path) -> Iterator[epath.Path]:
  """Yields all files below a folder."""
  for path in directory.iterdir():
    if path.is_dir():
      yield from _walk(path)
    else:
      yield path
