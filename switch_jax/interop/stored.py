"""Arrays that lie in files of other software: the shape is known at once, the values are read on demand."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from switch_jax.config import ConfigError, ModelConfig
from switch_jax.folders.model_dir import CHECKPOINTS

# All of them convert to float32 without rounding.
EXACT_IN_FLOAT32 = ('float32', 'bfloat16', 'float16')


Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class StoredArray:
  """An array in a file, or made of such arrays when it is read.

  Attributes:
    shape: under T5X's conventions, that is after the transposition of a Hugging Face matrix.
    fetch: returns the values of a box of the array: one slice with start and stop for each axis.
    chunk_rows: rows of the first axis that the file stores together, so that fewer cost as much as these.
  """

  shape: tuple[int, ...]
  fetch: Callable[[Index], np.ndarray]
  chunk_rows: int = 1

  def read(self, index: Index = ()) -> np.ndarray:
    """Returns the values, or a box of them, as a float32 array of the caller's own, row by row in memory.

    Args:
      index: a slice without a step for each axis; axes that are left out are read whole.
    """
    given = (*index, *(slice(None),) * (len(self.shape) - len(index)))
    box = tuple(slice(*part.indices(size)[:2]) for part, size in zip(given, self.shape, strict=True))
    return to_float32(self.fetch(box))

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Returns some rows of the first axis; a scalar whole."""
    return self.read((slice(start, stop),) if self.shape else ())


def in_memory(array: np.ndarray) -> StoredArray:
  """Returns an array that is already in memory as one that could be in a file."""
  return StoredArray(array.shape, lambda box: array[box].copy())


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """An opened checkpoint.

  Attributes:
    path: the folder or file, for messages.
    arrays: the parameters by T5X name (`encoder/layers_1/mlp/expert/wi/kernel`).
    recorded: fields of `ModelConfig` and `MoeConfig` that the files record beside the arrays (Hugging Face).
    unclear: fields that they record in terms that have no equal here, each with the message to show unless the caller
      overrides it.
    config: the whole configuration, where the files record it (our own format, Llama, Mixtral).
    step: updates made, where the files say.
    moments: Adafactor's second moments by parameter and slot (`v`, or `v_row` and `v_col`), in T5X's convention
      (`switch_jax.interop.moments`); None where there are none.
    left_out: what the files hold beside that, in words, and is not read.
    verify: raises a `ConfigError` if files are missing or cut off, as far as can be seen without reading them.
  """

  path: str
  arrays: Mapping[str, StoredArray]
  recorded: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  unclear: Mapping[str, str] = dataclasses.field(default_factory=dict)
  config: ModelConfig | None = None
  step: int | None = None
  moments: Mapping[str, Mapping[str, StoredArray]] | None = None
  left_out: tuple[str, ...] = ()
  verify: Callable[[], None] = lambda: None

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter."""
    return {name: array.shape for name, array in self.arrays.items()}


def check_dtype(dtype: str, name: str, path: str) -> None:
  """Raises a `ConfigError` unless values of this dtype are exact in float32."""
  if dtype not in EXACT_IN_FLOAT32:
    raise ConfigError(
      f'{name} in {path} is stored as {dtype}; parameters must be {", ".join(EXACT_IN_FLOAT32)}, which float32 holds '
      'exactly. Save the checkpoint again in one of these.'
    )


def to_float32(array: np.ndarray) -> np.ndarray:
  """Returns as float32, row by row in memory and writeable, an array whose values float32 holds exactly.

  What is that already is returned as it is: a copy would double the memory of a large tensor.
  """
  if array.dtype == np.uint16:  # how bfloat16 was written before TensorStore knew it: the bits
    array = array.view(ml_dtypes.bfloat16)
  return np.require(array, np.float32, ('C', 'W'))


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a nested dict for names separated by `/`."""
  tree: dict[str, Any] = {}
  for name, value in flat.items():
    *parents, leaf = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return tree


def enumerate_some(names: Iterable[str], limit: int = 5) -> str:
  """Returns the first names for a message: `a, b, c, d, e and 7 more`."""
  names = sorted(names)
  shown = ', '.join(names[:limit])
  return shown if len(names) <= limit else f'{shown} and {len(names) - limit} more'


def describe_folder(entries: Iterable[str]) -> str:
  """Returns in words what a folder with these entries is, and which format to ask for."""
  entries = set(entries)
  steps = sorted((e for e in entries if e.startswith('checkpoint_')), key=lambda e: (len(e), e))
  if CHECKPOINTS in entries:
    return 'it is a MODEL_DIR of switch_jax itself'
  if 'config.json' in entries or any(e.endswith('.safetensors') for e in entries):
    return 'it looks like a Hugging Face checkpoint; read it with format huggingface'
  if any(e.endswith('.bin') for e in entries):
    return 'it holds PyTorch pickles, which are not read; save the model again as safetensors'
  if '_METADATA' in entries or 'manifest.ocdbt' in entries:
    return 'it is in the Orbax format; of a T5X checkpoint give the folder above it, which holds the folder state'
  if 'checkpoint' in entries:
    return 'it looks like a T5X checkpoint; read it with format t5x'
  if steps:
    return f'it holds the checkpoints {", ".join(steps)}; name one of them'
  if not entries:
    return 'it is empty'
  return f'it holds {enumerate_some(entries)}'
