"""Zarr arrays of files that others wrote: what their descriptions say is checked before any memory is asked for.

TensorStore ends the process where a description asks for more memory than there is, and decompresses whatever a chunk
holds. So sizes are compared with each other and with the files first, and what gzip compressed is decompressed here,
never further than a chunk is long.
"""

import concurrent.futures
import dataclasses
import itertools
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from switch_jax.config import ConfigError
from switch_jax.folders.checked_json import Fields
from switch_jax.interop.stored import Index

# By how Zarr and the headers in T5X's index write them.
DTYPES = {
  '<f4': 'float32', '<f2': 'float16', '<f8': 'float64', '<u2': 'uint16', '<i4': 'int32', '<i8': 'int64',
  'V2': 'bfloat16',
}  # fmt: skip
_ITEM_BYTES = {'float32': 4, 'float16': 2, 'float64': 8, 'uint16': 2, 'int32': 4, 'int64': 8, 'bfloat16': 2}
_ZLIB = {'gzip': 31, 'zlib': 15}
_COMPRESSORS = (None, *_ZLIB, 'zstd', 'blosc')
# A chunk may be longer than its array where a writer rounds up, and a small array of any use has a small chunk.
_SLACK_BYTES = 16 * 2**20
# Bytes of a zstd block of equal values, over those that say so.
_ZSTD_RATIO = 2**15
# Of one array; the largest known checkpoint has 100,000 in all.
_MAX_CHUNKS = 2**17


@dataclasses.dataclass(frozen=True)
class Description:
  """What `.zarray` or `zarr.json` says.

  Attributes:
    shape, chunks: of the array and of a chunk.
    dtype: as NumPy calls it, `bfloat16` too; what is not known as the file writes it.
    compressor: its name; None for none.
    separator, order: of the numbers in a chunk's name; `C` or `F`.
    driver: TensorStore's, `zarr` or `zarr3`.
  """

  shape: tuple[int, ...]
  chunks: tuple[int, ...]
  dtype: str
  compressor: str | None = None
  separator: str = '.'
  order: str = 'C'
  driver: str = 'zarr'

  @property
  def chunk_bytes(self) -> int:
    """Bytes of a chunk, not compressed."""
    return _ITEM_BYTES.get(self.dtype, 8) * math.prod(self.chunks)

  @property
  def numpy_dtype(self) -> np.dtype:
    """The dtype; of those that parameters have."""
    return np.dtype(ml_dtypes.bfloat16 if self.dtype == 'bfloat16' else self.dtype)

  def chunks_of(self, box: Index) -> Iterator[tuple[int, ...]]:
    """Yields the numbers of the chunks that hold values of a box."""
    return itertools.product(
      *(range(part.start // chunk, -(-part.stop // chunk)) for part, chunk in zip(box, self.chunks, strict=True))
    )

  def key(self, numbers: tuple[int, ...]) -> str:
    """Returns the name of a chunk's file."""
    return self.separator.join(map(str, numbers)) or '0'


def describe_v2(values: Mapping[str, Any], where: str) -> Description:
  """Returns what a `.zarray` says. Raises a `ConfigError` if it contradicts itself or is none."""
  fields = Fields(where, values)
  shape, chunks = fields.sizes('shape'), fields.sizes('chunks', minimum=1)
  compressor = None
  if values.get('compressor') is not None:
    compressor = fields.object('compressor').text('id')
  if compressor not in _COMPRESSORS:
    raise fields.wrong('compressor', f'one of {", ".join(map(str, _COMPRESSORS))}')
  separator, order, dtype = fields.text('dimension_separator', '.'), fields.text('order', 'C'), fields.text('dtype')
  if separator not in ('.', '/'):
    raise fields.wrong('dimension_separator', "'.' or '/'")
  if order not in ('C', 'F'):
    raise fields.wrong('order', "'C' or 'F'")
  if values.get('filters'):
    raise fields.wrong('filters', 'null')
  description = Description(shape, chunks, DTYPES.get(dtype, dtype), compressor, separator, order)
  return _checked(description, fields, 'chunks')


def describe_v3(values: Mapping[str, Any], where: str) -> Description:
  """Returns what a `zarr.json` says. Raises a `ConfigError` if it contradicts itself or is none."""
  fields = Fields(where, values)
  grid = fields.object('chunk_grid').object('configuration')
  shape, chunks, dtype = fields.sizes('shape'), grid.sizes('chunk_shape', minimum=1), fields.text('data_type')
  return _checked(Description(shape, chunks, dtype, driver='zarr3'), grid, 'chunk_shape')


def _checked(description: Description, fields: Fields, name: str) -> Description:
  shape, chunks = description.shape, description.chunks
  if len(chunks) != len(shape):
    raise fields.wrong(name, f'as many sizes as the shape {shape} has')
  array_bytes = math.prod(shape) * _ITEM_BYTES.get(description.dtype, 8)
  if description.chunk_bytes > 2 * array_bytes + _SLACK_BYTES:
    raise fields.wrong(name, f'no larger than the array, of the shape {shape}')
  if math.prod(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)) > _MAX_CHUNKS:
    raise fields.wrong(name, f'a part of the shape {shape} that makes no more than {_MAX_CHUNKS} chunks')
  return description


def check_encoded(description: Description, head: bytes, length: int) -> None:
  """Checks what the first bytes of a chunk say that it decompresses to.

  Args:
    description: of its array.
    head: its first 18 bytes, or all if there are fewer.
    length: of the chunk, compressed.

  Raises:
    ValueError: it is longer than a chunk of that array can be, or would decompress to more.
  """
  size = description.chunk_bytes
  if length > size + size // 50 + 65536:
    raise ValueError(f'it has {length:,} bytes, and a chunk has {size:,} before it is compressed')
  declared: int | None = size
  if description.compressor == 'blosc':
    declared = int.from_bytes(head[4:8], 'little') if len(head) >= 16 else -1
  elif description.compressor == 'zstd':
    declared = _zstd_size(head)
    if declared is None:  # then no more than so many blocks of equal values
      declared = size if length * _ZSTD_RATIO <= size + 2**28 else -1
  elif description.compressor is None and description.driver == 'zarr':
    declared = length
  if declared != size:
    raise ValueError(f'it holds {declared:,} bytes, not {size:,}' if declared != -1 else 'its header is damaged')


def _zstd_size(head: bytes) -> int | None:
  """Returns what a zstd frame says of its length before compression: None for nothing, -1 if it is no frame."""
  if len(head) < 6 or head[:4] != b'\x28\xb5\x2f\xfd':
    return -1
  flags, single = head[4], bool(head[4] & 0x20)
  start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
  length = (int(single), 2, 4, 8)[flags >> 6]
  if len(head) < start + length:
    return -1
  return int.from_bytes(head[start : start + length], 'little') + 256 * (length == 2) if length else None


def decompress(description: Description, raw: bytes) -> bytes:
  """Returns the bytes of a chunk that is not compressed, or by gzip or zlib.

  Raises:
    ValueError: it is damaged, or has another length than a chunk of that array.
  """
  size = description.chunk_bytes
  check_encoded(description, raw[:18], len(raw))
  if description.compressor is None:
    return raw
  stream = zlib.decompressobj(_ZLIB[description.compressor])
  try:
    data = stream.decompress(raw, size + 1)
  except zlib.error as error:
    raise ValueError(f'it cannot be decompressed: {error}') from error
  if len(data) != size or not stream.eof:
    raise ValueError(f'it decompresses to {"more than" if len(data) > size else len(data)} bytes, not {size:,}')
  return data


def is_read_here(description: Description) -> bool:
  """Whether `read_box` can read it; TensorStore does otherwise."""
  known = description.dtype in _ITEM_BYTES
  return known and description.driver == 'zarr' and description.compressor in (None, *_ZLIB)


def read_box(description: Description, box: Index, read: Callable[[str], bytes | None]) -> np.ndarray:
  """Returns the values of a box of an array.

  Args:
    description: of the array.
    box: one slice with start and stop for each axis.
    read: from the name of a chunk to its bytes; None for a chunk of zeros.

  Raises:
    ValueError: a chunk is damaged; whatever `read` raises.
  """
  array = np.zeros([part.stop - part.start for part in box], description.numpy_dtype)

  def place(numbers: tuple[int, ...]) -> None:
    try:
      raw = read(description.key(numbers))
      if raw is None:
        return
      data = decompress(description, raw)
    except ValueError as error:
      if isinstance(error, ConfigError):
        raise
      raise ValueError(f'chunk {description.key(numbers)}: {error}') from error
    chunk = np.frombuffer(data, description.numpy_dtype).reshape(description.chunks, order=description.order)
    there, here = [], []
    for number, part, length in zip(numbers, box, description.chunks, strict=True):
      start, stop = max(part.start, number * length), min(part.stop, (number + 1) * length)
      here.append(slice(start - part.start, stop - part.start))
      there.append(slice(start - number * length, stop - number * length))
    array[tuple(here)] = chunk[tuple(there)]

  workers = min(8, os.cpu_count() or 1)  # zlib decompresses without Python's lock
  numbers = description.chunks_of(box)
  if workers == 1 or math.prod(array.shape) <= math.prod(description.chunks):
    for each in numbers:
      place(each)
    return array
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    for _ in pool.map(place, numbers):
      pass
  return array
