"""Sizes and checksums of a step's files, by which damage is found before anything is read. Imports no JAX.

A checksum is the xxh3_128 of the xxh3_128 of a file's blocks one after the other, so that a large file too is read by
many threads at once. `files.json` holds them all, and a checksum of itself; every byte of it counts. Older versions
wrote sizes only; of their steps only these are compared.
"""

import concurrent.futures
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import xxhash
from etils import epath

from switch_jax.config import first_line
from switch_jax.folders.regular_files import regular_file

BLOCK_BYTES = 64 * 2**20
_ALGORITHM = 'xxh3_128 of 64 MiB blocks'
# Stays in a core's cache between being read and being summed.
_PIECE_BYTES = 512 * 2**10
# An object store answers many requests at once; a local disk needs no more than there are cores.
_REMOTE_THREADS = 32


@dataclasses.dataclass(frozen=True)
class File:
  """What is recorded of a file: its size in bytes, and its checksum; None in steps of older versions."""

  size: int
  checksum: str | None


def list_files(folder: epath.Path, below: str = '') -> list[str]:
  """Returns the names of all files in a folder and its folders, in order; `below` is put before them."""
  return sorted(f'{below}{path.relative_to(folder)}' for path in _walk(folder))


def measure(
  folder: epath.Path, names: Iterable[str], progress: Callable[[int], Any] = lambda size: None
) -> dict[str, File]:
  """Reads files, many at once, and returns their sizes and checksums by name.

  Args:
    folder: where they lie, local or `gs://`.
    names: relative to it.
    progress: is told, by any thread, the bytes of every block that has been read.

  Raises:
    OSError: one cannot be read.
  """
  places = {name: _place(folder, name) for name in names}
  return _measure(places, {name: path.stat().length for name, path in places.items()}, progress)


def _measure(
  places: Mapping[str, epath.Path], sizes: Mapping[str, int], progress: Callable[[int], Any]
) -> dict[str, File]:
  blocks = [(name, start) for name, size in sizes.items() for start in range(0, size, BLOCK_BYTES)]

  def read(block: tuple[str, int]) -> bytes:
    digest, size = _digest(places[block[0]], block[1])
    progress(size)
    return digest

  remote = any('://' in os.fspath(place) for place in places.values())
  with concurrent.futures.ThreadPoolExecutor(_REMOTE_THREADS if remote else os.cpu_count()) as pool:
    digests = list(pool.map(read, blocks))
  sums = {name: xxhash.xxh3_128() for name in sizes}
  for (name, _), digest in zip(blocks, digests, strict=True):
    sums[name].update(digest)
  return {name: File(size, sums[name].hexdigest()) for name, size in sizes.items()}


def check(folder: epath.Path, recorded: Mapping[str, File], progress: Callable[[int], Any] = lambda size: None) -> None:
  """Compares files with what is recorded of them: sizes first, then, all at once, checksums.

  Args:
    folder: where they lie, local or `gs://`.
    recorded: by name, relative to the folder.
    progress: as `measure`.

  Raises:
    ValueError: one is missing or has another size or checksum.
    OSError: one cannot be read.
  """
  places = {name: _place(folder, name) for name in recorded}
  for name, file in recorded.items():
    found = _length(places[name])
    if found != file.size:
      raise ValueError(f'{name} ' + ('is missing' if found is None else f'has {found} bytes, not {file.size}'))
  summed = {name: file.size for name, file in recorded.items() if file.checksum}
  for name, measured in _measure({name: places[name] for name in summed}, summed, progress).items():
    if measured.checksum != recorded[name].checksum:
      raise ValueError(f'{name} has other bytes than were written (its checksum differs)')


def write_record(path: epath.Path, files: Mapping[str, File]) -> None:
  """Writes `files.json`."""
  path.write_text(_to_text(files))


def read_record(path: epath.Path) -> dict[str, File]:
  """Returns what `files.json` holds.

  Raises:
    ValueError: it is damaged.
    OSError: it cannot be read.
  """
  data = _place(path.parent, path.name).read_bytes()
  try:
    record = json.loads(data)
    if all(type(size) is int for size in record.values()):
      return {name: File(size, None) for name, size in record.items()}
    if record['algorithm'] != _ALGORITHM:
      raise ValueError(f'its checksums are {record["algorithm"]!r}, which this version does not know')
    files = {name: File(int(size), str(checksum)) for name, (size, checksum) in record['files'].items()}
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise ValueError(f'{path.name} is damaged: {first_line(error)}') from error
  if _to_text(files).encode() != data:
    raise ValueError(f'{path.name} has other bytes than were written (its checksum differs)')
  return files


def _to_text(files: Mapping[str, File]) -> str:
  listed = {name: [file.size, file.checksum] for name, file in sorted(files.items())}
  lines = ',\n'.join(f'    {json.dumps(name)}: {json.dumps(entry)}' for name, entry in listed.items())
  body = f'  "algorithm": "{_ALGORITHM}",\n  "files": {{\n{lines}\n  }}'
  return f'{{\n{body},\n  "checksum": "{xxhash.xxh3_128(body.encode()).hexdigest()}"\n}}\n'


def _place(folder: epath.Path, name: str) -> epath.Path:
  """Returns where a file lies. Raises a `ConfigError` (a ValueError) unless it is a regular one in the folder."""
  return folder / name if '://' in os.fspath(folder) else epath.Path(regular_file(folder, name))


def _length(path: epath.Path) -> int | None:
  try:
    return path.stat().length
  except FileNotFoundError:
    return None


def _digest(path: epath.Path, start: int) -> tuple[bytes, int]:
  """Returns the digest of one block of a file, and its bytes."""
  digest, left = xxhash.xxh3_128(), BLOCK_BYTES
  with path.open('rb') as file:
    file.seek(start)
    while left and (piece := file.read(min(_PIECE_BYTES, left))):
      digest.update(piece)
      left -= len(piece)
  return digest.digest(), BLOCK_BYTES - left


def _walk(directory: epath.Path) -> Iterator[epath.Path]:
  """Yields all files below a folder."""
  for path in directory.iterdir():
    if path.is_dir():
      yield from _walk(path)
    else:
      yield path
