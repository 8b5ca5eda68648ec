"""Arrays written as zarr, some rows at a time."""

import math

import ml_dtypes
import numpy as np
import pytest
import tensorstore

from switch_jax.interop import zarr_files
from switch_jax.interop.zarr_files import ZarrArray


def read(folder):
  place = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{folder}/'}, 'fill_missing_data_reads': False}
  return tensorstore.open(place, open=True, read=True).result().read().result()


@pytest.mark.parametrize('shape', [(), (7,), (32128, 2080), (2048, 768, 6144), (3, 2**25)])
def test_chunks_are_small_and_fit_the_array(shape):
  chunk = zarr_files.chunk_shape(shape)
  assert 4 * math.prod(chunk) <= zarr_files.PIECE_BYTES
  assert all(1 <= part <= size for part, size in zip(chunk, shape, strict=True))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_rows_are_written_one_after_the_other(tmp_path, monkeypatch, dtype):
  monkeypatch.setattr(zarr_files, 'PIECE_BYTES', 32)
  matrix = np.arange(20, dtype=np.float32).reshape(5, 4)
  array = ZarrArray(str(tmp_path / 'x'), (5, 4), dtype)
  assert array.chunks == (2, 4)
  for start in (0, 2, 4):
    array.write(start, matrix[start : start + 2])
  found = read(tmp_path / 'x')
  assert found.dtype == np.dtype(ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype)
  np.testing.assert_array_equal(found.astype(np.float32), matrix)


def test_zeros_and_scalars_are_in_the_files(tmp_path):
  """A chunk that is not there is what readers take for damage."""
  ZarrArray(str(tmp_path / 'zeros'), (2, 3), 'float32').write(0, np.zeros((2, 3), np.float32))
  ZarrArray(str(tmp_path / 'step'), (), 'int32').write(0, np.array(0, np.int32))
  np.testing.assert_array_equal(read(tmp_path / 'zeros'), np.zeros((2, 3), np.float32))
  assert read(tmp_path / 'step') == 0
