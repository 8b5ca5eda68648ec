"""Arrays written as zarr, one folder each, some rows at a time."""

import math

import ml_dtypes
import numpy as np
import tensorstore

from switch_jax.folders.remote import is_remote

# What is read, held and written at a time. T5X's own chunks are of at most 64 MiB.
PIECE_BYTES = 32 * 2**20


def chunk_shape(shape: tuple[int, ...], itemsize: int = 4) -> tuple[int, ...]:
  """Returns the shape of a chunk of at most `PIECE_BYTES`: some whole rows, or a part of one."""
  chunk, budget = [], PIECE_BYTES // itemsize
  for axis, size in enumerate(shape):
    inner = math.prod(shape[axis + 1 :])
    chunk.append(max(1, min(size, budget // max(inner, 1))))
  return tuple(chunk)


def _kvstore(folder: str) -> dict[str, str]:
  """Returns how TensorStore is told of a folder, local or `gs://`."""
  if not is_remote(folder):
    return {'driver': 'file', 'path': f'{folder}/'}
  bucket, _, path = folder.partition('://')[2].partition('/')
  return {'driver': 'gcs', 'bucket': bucket, 'path': f'{path}/'}


class ZarrArray:
  """An array that is being written.

  Args:
    folder: where; made anew if `create`.
    shape: of the array.
    dtype: `float32`, `bfloat16` or `int32`.
  """

  def __init__(self, folder: str, shape: tuple[int, ...], dtype: str):
    self.shape, self.dtype, self.chunks = shape, dtype, chunk_shape(shape)
    self._folder = folder
    self._store = None

  def spec(self) -> dict:
    """Returns how TensorStore describes the array, without its place."""
    metadata = {'shape': list(self.shape), 'chunks': list(self.chunks), 'compressor': {'id': 'gzip', 'level': 1}}
    return {'driver': 'zarr', 'dtype': self.dtype, 'metadata': metadata}

  def write(self, start: int, block: np.ndarray) -> None:
    """Writes rows from `start` on; a scalar whole. Returns once they are in the file."""
    if self._store is None:
      spec = self.spec() | {'kvstore': _kvstore(self._folder)}
      # A chunk of zeros would be left out, and a missing chunk is what readers take for damage.
      spec['store_data_equal_to_fill_value'] = True
      self._store = tensorstore.open(spec, create=True, open=True).result()
    block = block.astype(np.dtype(ml_dtypes.bfloat16 if self.dtype == 'bfloat16' else self.dtype), copy=False)
    view = self._store[start : start + block.shape[0]] if self.shape else self._store
    view.write(block).result()


class ZarrOutputs:
  """What writers have in common whose every output is an array in files of its own, `_files`."""

  _files: dict[str, ZarrArray]
  outlives_kill = True

  def row_multiple(self, name: str) -> int:
    """Returns how many rows of an output lie together."""
    return self._files[name].chunks[0] if self._files[name].chunks else 1

  def write(self, name: str, start: int, block: np.ndarray) -> None:
    """Writes rows of an output."""
    self._files[name].write(start, block)

  def end(self, name: str) -> None:
    """Everything of an output has been written."""
