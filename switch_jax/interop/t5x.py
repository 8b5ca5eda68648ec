"""T5X's native checkpoints: a msgpack index named `checkpoint`, and a zarr folder beside it for every large array.

The index is a tree. A leaf is an array, stored right there, or a TensorStore spec that says where the array lies and
what shape it has, so shapes are known without opening a single folder. T5X's other format, Orbax, is not read.
"""

import functools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import tensorstore

from switch_jax.config import ConfigError
from switch_jax.interop import stored
from switch_jax.interop.stored import Checkpoint, StoredArray

# How Flax marks arrays and numpy scalars in msgpack; both are packed as (shape, dtype, bytes).
_ARRAY_CODES = (1, 3)
_DTYPES = {'<f4': 'float32', '<f2': 'float16', '<f8': 'float64', '<u2': 'uint16', '<i4': 'int32', 'V2': 'bfloat16'}


def open_checkpoint(path: str) -> Checkpoint:
  """Opens the parameters of a T5X checkpoint; reads its index only.

  Args:
    path: the folder `checkpoint_<step>`, or the index file in it; local, or `gs://bucket/...`.

  Raises:
    ConfigError: there is no such folder, or it is no T5X checkpoint, or its index is damaged.
  """
  folder, index = _read_index(path)
  target = index['optimizer'].get('target')
  if not isinstance(target, dict) or not target:
    raise ConfigError(f'{path} records no parameters (optimizer/target); take a checkpoint of a whole training state.')
  arrays = {}
  for name, leaf in _leaves(target):
    arrays[name] = _stored_array(folder, name, leaf)
  return Checkpoint(path, arrays)


def load_optimizer_state(path: str) -> dict[str, Any]:
  """Returns the optimizer state of a T5X checkpoint.

  Args:
    path: as in `switch_jax.interop.load`.

  Returns:
    `step`, an int, and `param_states`: a nested dict under the parameters' names whose leaves are float32 arrays, for
    Adafactor `m`, `v`, `v_row` and `v_col`; those that a parameter does not use have the shape (1,).

  Raises:
    ConfigError: as `switch_jax.interop.load`, or the checkpoint holds no optimizer state.
  """
  folder, index = _read_index(path)
  state = index['optimizer'].get('state')
  if not isinstance(state, dict) or not isinstance(state.get('param_states'), dict) or 'step' not in state:
    raise ConfigError(f'{path} records no optimizer state (optimizer/state); it holds parameters only.')
  step = state['step']
  if isinstance(step, dict):
    step = _read_tensorstore(folder, 'step', step)
  arrays = {name: _stored_array(folder, name, leaf).read() for name, leaf in _leaves(state['param_states'])}
  return {'step': int(step), 'param_states': stored.nest(arrays)}


def _read_index(path: str) -> tuple[str, dict[str, Any]]:
  """Returns the folder to which the paths in an index are relative, and the index."""
  path = os.fspath(path).rstrip('/')
  if path.startswith('gs://'):
    folder, raw = _read_remote_index(path)
  else:
    folder, raw = _read_local_index(path)
  if raw.startswith(b'model_checkpoint_path'):
    raise ConfigError(
      f'{path} is a TensorFlow checkpoint; only native T5X checkpoints are read. Convert it with '
      't5x.scripts.convert_tf_checkpoint.'
    )
  try:
    index = msgpack.unpackb(raw, ext_hook=_unpack_extension, strict_map_key=False)
  except Exception as error:  # msgpack raises various kinds, and _unpack_extension its own
    raise ConfigError(
      f'the index of {path} ({len(raw)} bytes) is not a whole msgpack file ({error}); the copy is incomplete or it is '
      'no T5X checkpoint. Copy the folder again.'
    ) from error
  if not isinstance(index, dict) or not isinstance(index.get('optimizer'), dict):
    found = stored.enumerate_some(map(str, index)) if isinstance(index, dict) else type(index).__name__
    raise ConfigError(f'the index of {path} holds {found}; a T5X checkpoint has the keys version and optimizer.')
  return folder, index


def _read_local_index(path: str) -> tuple[str, bytes]:
  place = pathlib.Path(path)
  if not place.exists():
    parent = next(p for p in place.absolute().parents if p.exists())
    raise ConfigError(f'there is no {path} (the nearest folder that exists is {parent}); give a checkpoint_<step>.')
  if place.is_file():
    return str(place.parent.absolute()), place.read_bytes()
  if not (place / 'checkpoint').is_file():
    found = stored.describe_folder(os.listdir(place))
    raise ConfigError(f'{path} is no T5X checkpoint, whose folder has a file named checkpoint: {found}.')
  return str(place.absolute()), (place / 'checkpoint').read_bytes()


def _read_remote_index(path: str) -> tuple[str, bytes]:
  folder = path.removesuffix('/checkpoint')
  try:
    result = tensorstore.KvStore.open(_kvstore(folder, '')).result().read('checkpoint').result()
  except ValueError as error:
    raise ConfigError(f'{folder} cannot be read ({error}); check the path and your access to the bucket.') from error
  if result.state != 'value':
    raise ConfigError(f'{folder} has no file named checkpoint; give the folder checkpoint_<step> of a T5X model.')
  return folder, result.value


def _unpack_extension(code: int, data: bytes) -> Any:
  """Unpacks an array that stands in the index itself."""
  if code not in _ARRAY_CODES:
    raise ValueError(f'msgpack extension {code} is unknown')
  shape, dtype, raw = msgpack.unpackb(data)
  dtype = _numpy_dtype(dtype if isinstance(dtype, str) else dtype.decode())
  return np.frombuffer(raw, dtype).reshape(shape)


def _numpy_dtype(name: str) -> np.dtype:
  name = _DTYPES.get(name, name)
  return np.dtype(ml_dtypes.bfloat16 if name == 'bfloat16' else name)


def _is_spec(node: Mapping[str, Any]) -> bool:
  return 'driver' in node and 'kvstore' in node


def _leaves(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields names, joined by `/`, and arrays or specs. A None is a parameter that its optimizer left out."""
  for key, node in tree.items():
    name = f'{prefix}{key}'
    if isinstance(node, dict) and not _is_spec(node):
      yield from _leaves(node, f'{name}/')
    elif node is not None:
      yield name, node


def _stored_array(folder: str, name: str, leaf: Any) -> StoredArray:
  """Returns a leaf of the index as an array to be read on demand."""
  if isinstance(leaf, dict):
    shape = leaf.get('metadata', {}).get('shape')
    dtype = leaf.get('dtype') or leaf.get('metadata', {}).get('dtype')
    if shape is None or dtype is None or leaf['driver'] != 'zarr':
      raise ConfigError(f'{name} in {folder} is stored as {leaf}; only zarr arrays with shape and dtype are read.')
    read = functools.partial(_read_tensorstore, folder, name, leaf)
  elif isinstance(leaf, np.ndarray):
    shape, dtype, read = leaf.shape, leaf.dtype.name, lambda: leaf
  else:
    raise ConfigError(f'{name} in {folder} is {leaf!r}; the leaves of a T5X checkpoint are arrays or zarr folders.')
  dtype = _DTYPES.get(dtype, dtype)
  if dtype != 'uint16':
    stored.check_dtype(dtype, name, folder)
  return StoredArray(tuple(shape), lambda: stored.to_float32(read()))


def _kvstore(folder: str, relative: str) -> dict[str, str]:
  """Returns where TensorStore finds the files, whichever driver (file, gfile, gcs) the writer used."""
  if match := re.fullmatch(r'gs://([^/]+)/?(.*)', folder):
    path = '/'.join(part.strip('/') for part in (match[2], relative) if part)
    return {'driver': 'gcs', 'bucket': match[1], 'path': path and f'{path}/'}
  return {'driver': 'file', 'path': os.path.join(folder, relative).rstrip('/') + '/'}


def _read_tensorstore(folder: str, name: str, spec: Mapping[str, Any]) -> np.ndarray:
  """Reads the array of a TensorStore spec of the index."""
  kvstore = spec['kvstore']
  # Before version 0.1.14 TensorStore had the path beside the kvstore and not in it.
  relative = (kvstore.get('path') if isinstance(kvstore, dict) else None) or spec.get('path')
  if not relative or os.path.isabs(relative) or '..' in relative.split('/'):
    raise ConfigError(f'{name} in {folder} lies at {relative!r}; the paths of a T5X checkpoint are relative to it.')
  # Chunks and compressor are what the folder itself says. A chunk that is not there must not be read as zeros.
  place = {'driver': 'zarr', 'kvstore': _kvstore(folder, relative), 'fill_missing_data_reads': False}
  try:
    array = tensorstore.open(place, open=True, read=True).result()
    if 'shape' in spec.get('metadata', {}) and array.shape != tuple(spec['metadata']['shape']):
      raise ValueError(f'it has the shape {array.shape}, the index says {tuple(spec["metadata"]["shape"])}')
    return array.read().result()
  except ValueError as error:
    cause = str(error).split(' [')[0]  # without TensorStore's dump of the spec and its own source lines
    raise ConfigError(
      f'{name} cannot be read from {folder} ({cause}); the copy is incomplete or damaged. Copy the folder again.'
    ) from error
