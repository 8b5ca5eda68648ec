"""Zarr as others wrote it: boxes as TensorStore reads them, and sizes that are refused before memory is asked for."""

import gzip
import tracemalloc

import numpy as np
import pytest
import tensorstore

from switch_jax.config import ConfigError
from switch_jax.interop import zarr_chunks

ZARRAY = {'shape': [5, 7], 'chunks': [2, 3], 'dtype': '<f4', 'compressor': {'id': 'gzip'}, 'zarr_format': 2}


@pytest.mark.parametrize('order', ['C', 'F'])
@pytest.mark.parametrize('compressor', [None, {'id': 'gzip', 'level': 1}, {'id': 'zlib', 'level': 1}])
def test_boxes_are_those_of_tensorstore(tmp_path, compressor, order):
  matrix = np.arange(35, dtype=np.float32).reshape(5, 7)
  metadata = {'shape': [5, 7], 'chunks': [2, 3], 'dtype': '<f4', 'compressor': compressor, 'order': order}
  spec = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{tmp_path}/'}, 'metadata': metadata}
  tensorstore.open(spec, create=True).result().write(matrix).result()
  description = zarr_chunks.describe_v2(metadata, 'f')
  assert zarr_chunks.is_read_here(description)
  read = lambda key: (tmp_path / key).read_bytes()  # noqa: E731
  for box in ((slice(0, 5), slice(0, 7)), (slice(1, 4), slice(2, 3)), (slice(4, 5), slice(3, 7))):
    np.testing.assert_array_equal(zarr_chunks.read_box(description, box, read), matrix[box], strict=True)
  np.testing.assert_array_equal(zarr_chunks.read_box(description, box, lambda key: None), 0)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'chunks': [2**40, 3]}, 'chunks is .* it must be no larger than the array'),
    ({'chunks': 5}, 'chunks is 5; it must be a list of sizes'),
    ({'chunks': [0, 3]}, 'chunks is'),
    ({'chunks': [2]}, 'it must be as many sizes as the shape'),
    ({'chunks': None}, 'chunks is None'),
    ({'shape': [-1, 7]}, 'shape is'),
    ({'shape': [2**30, 1000], 'chunks': [1, 1]}, 'makes no more than 131072 chunks'),
    ({'dtype': 5}, 'dtype is 5; it must be a string'),
    ({'compressor': {'id': 'bz2'}}, 'it must be one of None, gzip, zlib, zstd, blosc'),
    ({'compressor': 5}, 'compressor is 5; it must be an object'),
    ({'dimension_separator': '../'}, 'dimension_separator is'),
    ({'order': 'X'}, 'order is'),
    ({'filters': [{'id': 'delta'}]}, 'filters is'),
  ],
)
def test_descriptions_that_contradict_themselves(change, message):
  with pytest.raises(ConfigError, match=message):
    zarr_chunks.describe_v2(ZARRAY | change, 'f')


def test_version_3():
  grid = {'name': 'regular', 'configuration': {'chunk_shape': [2, 3]}}
  values = {'shape': [5, 7], 'data_type': 'bfloat16', 'chunk_grid': grid}
  assert zarr_chunks.describe_v3(values, 'f').chunk_bytes == 12
  with pytest.raises(ConfigError, match=r'chunk_grid: configuration: chunk_shape is .* no larger than the array'):
    zarr_chunks.describe_v3(values | {'chunk_grid': {'configuration': {'chunk_shape': [2**30, 3]}}}, 'f')
  with pytest.raises(ConfigError, match='chunk_grid is 5; it must be an object'):
    zarr_chunks.describe_v3(values | {'chunk_grid': 5}, 'f')


def test_a_bomb_is_not_blown_up():
  description = zarr_chunks.describe_v2(ZARRAY, 'f')
  bomb = gzip.compress(bytes(60_000_000))
  tracemalloc.start()
  with pytest.raises(ValueError, match='decompresses to more than bytes, not 24'):
    zarr_chunks.decompress(description, bomb)
  assert tracemalloc.get_traced_memory()[1] < 2_000_000
  tracemalloc.stop()
  with pytest.raises(ValueError, match='cannot be decompressed'):
    zarr_chunks.decompress(description, b'x' * 20)
  with pytest.raises(ValueError, match='and a chunk has 24 before'):
    zarr_chunks.decompress(description, bytes(100_000))


@pytest.mark.parametrize(
  ('compressor', 'head', 'message'),
  [
    ('blosc', bytes(4) + (2**31).to_bytes(4, 'little') + bytes(8), 'holds 2,147,483,648 bytes, not 24'),
    ('blosc', b'x', 'header is damaged'),
    ('zstd', b'\x28\xb5\x2f\xfd\xe0' + (2**60).to_bytes(8, 'little'), 'holds 1,152,921,504,606,846,976 bytes, not 24'),
    ('zstd', b'\x28\xb5\x2f\xfd\x20\x17', 'holds 23 bytes, not 24'),
    ('zstd', b'not zstd at all', 'header is damaged'),
  ],
)
def test_what_a_header_declares(compressor, head, message):
  description = zarr_chunks.describe_v2(ZARRAY | {'compressor': {'id': compressor}}, 'f')
  with pytest.raises(ValueError, match=message):
    zarr_chunks.check_encoded(description, head, 40)
  zarr_chunks.check_encoded(
    zarr_chunks.describe_v2(ZARRAY | {'compressor': {'id': 'zstd'}}, 'f'), b'\x28\xb5\x2f\xfd\x20\x18', 40
  )
