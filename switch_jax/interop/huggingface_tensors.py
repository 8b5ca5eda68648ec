"""The tensors of a Hugging Face folder, read on demand: safetensors, whole or in shards, under T5X's names."""

import functools
import itertools
import math
import os
import pathlib
import struct
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors

from switch_jax.config import ConfigError, first_line
from switch_jax.folders import checked_json
from switch_jax.folders.checked_json import Fields
from switch_jax.folders.regular_files import regular_file
from switch_jax.interop import names, stored
from switch_jax.interop.stored import Index, StoredArray

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
_HEADER_BYTES = 100_000_000  # at most, as the safetensors package has it
_DTYPES = {'F32': 'float32', 'BF16': 'bfloat16', 'F16': 'float16'}


class Tensor:
  """A tensor of a safetensors file, as it lies there.

  The file is read and not mapped into memory, as the safetensors package does, so that what has been read does not
  count as this process's memory.
  """

  def __init__(self, path: pathlib.Path, name: str, entry: Fields, data_start: int):
    self.shape = entry.sizes('shape')
    dtype = entry.text('dtype')
    self.dtype = _DTYPES.get(dtype, dtype)
    stored.check_dtype(self.dtype, name, str(path))
    self._path, self._start = path, data_start + entry.sizes('data_offsets')[0]

  def read(self, box: Index = ()) -> np.ndarray:
    """Returns the values, or those in a box."""
    dtype = np.dtype(ml_dtypes.bfloat16 if self.dtype == 'bfloat16' else self.dtype)
    rows = box[0] if box else slice(0, self.shape[0]) if self.shape else slice(0, 1)
    row_size = math.prod(self.shape[1:])
    count, offset = (rows.stop - rows.start) * row_size, self._start + rows.start * row_size * dtype.itemsize
    array = np.fromfile(self._path, dtype, count, offset=offset)
    shape = (rows.stop - rows.start, *self.shape[1:]) if self.shape else ()
    if array.size != count:
      raise ConfigError(f'{self._path} ends before its tensors do; the copy is incomplete. Copy it again.')
    return array.reshape(shape)[(slice(None), *box[1:])] if box else array.reshape(shape)


def open_tensors(folder: pathlib.Path) -> dict[str, Tensor]:
  """Returns all tensors of a checkpoint by their names in the files."""
  if (folder / WEIGHTS).exists():
    return _open_file(folder, WEIGHTS)
  if not (folder / INDEX).exists():
    found = stored.describe_folder(set(os.listdir(folder)) - {'config.json'})
    raise ConfigError(f'{folder} has neither {WEIGHTS} nor {INDEX}: {found}.')
  index = checked_json.read(folder, INDEX)
  if not isinstance(index.get('weight_map'), dict):
    raise ConfigError(f'{folder / INDEX} has no weight_map; it must say which file holds which tensor. Copy it again.')
  weight_map = Fields(str(folder / INDEX), index).object('weight_map')
  files = {}
  for name in sorted({weight_map.text(tensor) for tensor in weight_map.values}):
    if not regular_file(folder, name).exists():
      raise ConfigError(f'{folder} lacks {name}, which {INDEX} names; copy all shards of the checkpoint.')
    files[name] = _open_file(folder, name)
  lost = [name for name, file in weight_map.values.items() if name not in files[file]]
  if lost:
    raise ConfigError(
      f'{INDEX} of {folder} names tensors that are not in their shards: {stored.enumerate_some(lost)}; index and '
      'shards belong to different checkpoints. Copy all of them again.'
    )
  return {name: files[file][name] for name, file in weight_map.values.items()}


def _open_file(folder: pathlib.Path, name: str) -> dict[str, Tensor]:
  path = regular_file(folder, name)
  try:
    safetensors.safe_open(path, 'numpy')  # checks header and size: tensors fill the file, none over another
    with path.open('rb') as file:
      (size,) = struct.unpack('<Q', file.read(8))
      header = file.read(min(size, _HEADER_BYTES))
  except (safetensors.SafetensorError, OSError) as error:
    raise ConfigError(
      f'{path} ({path.stat().st_size} bytes) is not a whole safetensors file ({first_line(error)}); the copy is '
      'incomplete. Copy it again.'
    ) from error
  fields = Fields(str(path), checked_json.parse(header, f'the header of {path}', _HEADER_BYTES))
  return {
    tensor: Tensor(path, tensor, fields.object(tensor), 8 + size)
    for tensor in fields.values
    if tensor != '__metadata__'
  }


def named(path: str, model_type: str, family: names.Family, tensors: Mapping[str, Tensor]) -> dict[str, StoredArray]:
  """Returns the parameters under T5X's names: matrices transposed, experts stacked.

  Args:
    path: of the checkpoint, for messages.
    model_type: of its config.json, for messages.
    family: whose names the tensors have.
    tensors: by their names in the files.

  Raises:
    ConfigError: a tensor is unknown, or experts are missing or not alike.
  """
  arrays: dict[str, StoredArray] = {}
  experts: dict[str, dict[int, Tensor]] = {}
  unknown = []
  for name, tensor in tensors.items():
    match names.from_huggingface(name, family):
      case None:
        unknown.append(name)
      case t5x, None, transposed:
        shape = tensor.shape[::-1] if transposed else tensor.shape
        arrays[t5x] = StoredArray(shape, functools.partial(_read, tensor, transposed))
      case t5x, expert, _:
        experts.setdefault(t5x, {})[expert] = tensor
  if unknown:
    biased = any(name.endswith('router.classifier.bias') for name in unknown)
    remedy = ' Routers with a bias (router_bias) are not supported.' if biased else ''
    raise ConfigError(
      f'{path} has tensors that no {model_type} model here has: {stored.enumerate_some(unknown)}.{remedy}'
    )
  for t5x, parts in experts.items():
    arrays[t5x] = _stacked(path, t5x, parts)
  return arrays


def _read(tensor: Tensor, transposed: bool, box: Index) -> np.ndarray:
  return tensor.read(box[::-1]).T if transposed else tensor.read(box)


def read_copies(path: str, copies: Mapping[str, Tensor], box: Index) -> np.ndarray:
  """Returns a box of a tensor that stands in the files under several names; they must be equal."""
  (first, tensor), *others = copies.items()
  array = tensor.read(box)
  for name, other in others:
    if other.shape != tensor.shape or not np.array_equal(array, other.read(box)):
      raise ConfigError(
        f'{name} of {path} differs from {first}; a model here has one embedding, for both stacks and for logits that '
        'are tied to it. If only lm_head.weight is meant to differ, set tie_word_embeddings to false in config.json.'
      )
  return array


def lacks_head(path: str) -> ConfigError:
  """Returns the error that neither the logits have a table nor are they tied to the embedding."""
  return ConfigError(
    f'{path} lacks lm_head.weight, and its config.json does not tie it to the embedding; copy all of its files.'
  )


def _stacked(path: str, name: str, parts: dict[int, Tensor]) -> StoredArray:
  """Returns the matrices of all experts of a layer as one array `[expert, fan_in, fan_out]`."""
  # The highest number may be any: no list of all below it.
  missing = list(itertools.islice((i for i in range(max(parts) + 1) if i not in parts), 5))
  shapes = {part.shape for part in parts.values()}
  if missing or len(shapes) > 1:
    what = f'lacks the experts {missing}' if missing else f'has experts of different shapes {sorted(shapes)}'
    raise ConfigError(f'{name} in {path} {what}; all experts of a layer must be there and alike. Copy all its files.')
  shape = (len(parts), *parts[0].shape[::-1])

  def read(box: Index) -> np.ndarray:
    experts, *matrix = box
    array = np.empty([axis.stop - axis.start for axis in box], np.float32)
    for row, expert in enumerate(range(experts.start, experts.stop)):
      array[row] = parts[expert].read(tuple(matrix[::-1])).T
    return array

  return StoredArray(shape, read)
