"""Arrays in files: boxes on demand, always float32 of the caller's own."""

import ml_dtypes
import numpy as np
import pytest

from switch_jax.config import ConfigError
from switch_jax.interop import stored


def test_boxes_and_rows():
  matrix = np.arange(24, dtype=np.float32).reshape(4, 6)
  array = stored.in_memory(matrix)
  np.testing.assert_array_equal(array.read((slice(1, None), slice(-2, None))), matrix[1:, -2:])
  np.testing.assert_array_equal(array.rows(1, 3), matrix[1:3])
  array.read()[:] = 0
  np.testing.assert_array_equal(array.read(), np.arange(24).reshape(4, 6))
  assert stored.in_memory(np.float32(3)[()] * np.ones(())).rows(0, 1) == 3


def test_float32_without_rounding():
  short = np.array([1.5, -2.25], ml_dtypes.bfloat16)
  for array in (short, short.view(np.uint16), short.astype(np.float16)):
    np.testing.assert_array_equal(stored.to_float32(array), np.array([1.5, -2.25], np.float32), strict=True)
  transposed = stored.to_float32(np.ones((2, 3), np.float32).T)
  assert transposed.flags.c_contiguous
  assert transposed.flags.writeable
  stored.check_dtype('bfloat16', 'x', '/c')
  with pytest.raises(ConfigError, match='x in /c is stored as float64; parameters must be float32'):
    stored.check_dtype('float64', 'x', '/c')


def test_names():
  assert stored.nest({'a/b': 1, 'a/c/d': 2, 'e': 3}) == {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}
  assert stored.enumerate_some(['b', 'a']) == 'a, b'
  assert stored.enumerate_some('gfedcba', 5) == 'a, b, c, d, e and 2 more'


@pytest.mark.parametrize(
  ('entries', 'message'),
  [
    (['checkpoints', 'train'], 'it is a MODEL_DIR of switch_jax itself'),
    (['config.json', 'model.safetensors'], 'it looks like a Hugging Face checkpoint'),
    (['pytorch_model.bin'], 'it holds PyTorch pickles'),
    (['_METADATA', 'd'], 'it is in the Orbax format'),
    (['checkpoint', 'target.x'], 'it looks like a T5X checkpoint'),
    (['checkpoint_20', 'checkpoint_100'], 'it holds the checkpoints checkpoint_20, checkpoint_100; name one of them'),
    ([], 'it is empty'),
    (['notes.txt'], 'it holds notes.txt'),
  ],
)
def test_folders_in_words(entries, message):
  assert stored.describe_folder(entries).startswith(message)
