"""T5X's checkpoints: a msgpack index named `checkpoint`, and a zarr folder beside it for every large array.

The index is a tree. A leaf is an array, stored right there, or a TensorStore spec that says where the array lies and
what shape it has, so shapes are known without opening a single folder. T5X's other format is Orbax's, in the folder
`state` of a checkpoint.
"""

import functools
import itertools
import json
import math
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
from switch_jax.interop import orbax_arrays, stored, t5x_scanned
from switch_jax.interop.stored import Checkpoint, Index, StoredArray

# How Flax marks arrays and numpy scalars in msgpack; both are packed as (shape, dtype, bytes).
_ARRAY_CODES = (1, 3)
_DTYPES = {'<f4': 'float32', '<f2': 'float16', '<f8': 'float64', '<u2': 'uint16', '<i4': 'int32', 'V2': 'bfloat16'}


def open_checkpoint(path: str) -> Checkpoint:
  """Opens a T5X checkpoint; reads its index only, and of one with scanned layers the relative-position tables.

  Args:
    path: the folder `checkpoint_<step>`, or the index file in it, or a folder that holds one of them; local, or
      `gs://bucket/...`.

  Raises:
    ConfigError: there is no such folder, or it is no T5X checkpoint, or its index is damaged.
  """
  return _open(path)[0]


def _open(path: str) -> tuple[Checkpoint, dict[str, StoredArray]]:
  """Opens a T5X checkpoint; returns also the arrays of its optimizer, as they are named in the files."""
  path = _single_checkpoint(os.fspath(path).rstrip('/'))
  is_orbax = orbax_arrays.is_folder(f'{path}/state')
  arrays, slots, step = _from_orbax(path) if is_orbax else _from_index(path)
  verify = (lambda: None) if is_orbax else functools.partial(_verify, path)
  if not arrays:
    raise ConfigError(f'{path} records no parameters (optimizer/target); take a checkpoint of a whole training state.')
  left_out = ()
  if t5x_scanned.is_scanned(arrays):
    arrays = t5x_scanned.separate_layers(path, arrays)
    if slots:
      left_out = ('the optimizer state, which T5X keeps otherwise for scanned layers',)
    return Checkpoint(path, arrays, step=step, left_out=left_out, verify=verify), slots
  moments, other = moments_of(slots)
  if other:
    left_out = (f'optimizer state that is no second moment of Adafactor: {stored.enumerate_some(other, 3)}',)
  return Checkpoint(path, arrays, step=step, moments=moments or None, left_out=left_out, verify=verify), slots


def moments_of(slots: Mapping[str, StoredArray]) -> tuple[dict[str, dict[str, StoredArray]], list[str]]:
  """Returns Adafactor's second moments by parameter and slot, and the names of whatever else there is.

  Slots that T5X does not use have the shape (1,).
  """
  moments: dict[str, dict[str, StoredArray]] = {}
  other = []
  for name, array in slots.items():
    parameter, _, slot = name.rpartition('/')
    if slot in ('v', 'v_row', 'v_col') and parameter:
      if array.shape != (1,):
        moments.setdefault(parameter, {})[slot] = array
    elif not (slot == 'm' and array.shape == (1,)):
      other.append(name)
  return moments, other


def _single_checkpoint(path: str) -> str:
  """Returns the one checkpoint in a local folder that is none itself, or the path as it is."""
  folder = pathlib.Path(path)
  if path.startswith('gs://') or not folder.is_dir() or (folder / 'checkpoint').exists():
    return path
  found = [entry for entry in folder.glob('checkpoint_*') if re.fullmatch(r'checkpoint_\d+', entry.name)]
  return str(found[0]) if len(found) == 1 else path


def _from_orbax(path: str) -> tuple[dict[str, StoredArray], dict[str, StoredArray], int | None]:
  """Returns parameters, optimizer slots and step of a checkpoint that T5X wrote through Orbax."""
  found = orbax_arrays.open_arrays(f'{path}/state')
  below = lambda prefix: {  # noqa: E731
    name.removeprefix(prefix).replace('.', '/'): array for name, array in found.items() if name.startswith(prefix)
  }
  step = int(found['state.step'].read()) if 'state.step' in found else None
  return below('target.'), below('state.param_states.'), step


def _from_index(path: str) -> tuple[dict[str, StoredArray], dict[str, StoredArray], int | None]:
  """Returns parameters, optimizer slots and step of a native checkpoint."""
  folder, index = _read_index(path)
  target, state = index['optimizer'].get('target'), index['optimizer'].get('state')
  stored_arrays = lambda tree: {  # noqa: E731
    name: _stored_array(folder, name, leaf) for name, leaf in _leaves(tree if isinstance(tree, dict) else {})
  }
  state = state if isinstance(state, dict) else {}
  step = state.get('step')
  if isinstance(step, dict):
    step = _read_tensorstore(folder, 'step', step, ())
  return stored_arrays(target), stored_arrays(state.get('param_states')), None if step is None else int(step)


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
  checkpoint, slots = _open(path)
  if not slots or checkpoint.step is None:
    raise ConfigError(f'{path} records no optimizer state (optimizer/state); it holds parameters only.')
  return {'step': checkpoint.step, 'param_states': stored.nest({name: slot.read() for name, slot in slots.items()})}


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
  chunk_rows = 1
  if isinstance(leaf, dict):
    metadata = leaf.get('metadata', {})
    shape, dtype = metadata.get('shape'), leaf.get('dtype') or metadata.get('dtype')
    if shape is None or dtype is None or leaf['driver'] != 'zarr':
      raise ConfigError(f'{name} in {folder} is stored as {leaf}; only zarr arrays with shape and dtype are read.')
    chunk_rows = (metadata.get('chunks') or [1])[0]
    read = functools.partial(_read_tensorstore, folder, name, leaf)
  elif isinstance(leaf, np.ndarray):
    shape, dtype, read = leaf.shape, leaf.dtype.name, lambda box: leaf[box]
  else:
    raise ConfigError(f'{name} in {folder} is {leaf!r}; the leaves of a T5X checkpoint are arrays or zarr folders.')
  dtype = _DTYPES.get(dtype, dtype)
  if dtype != 'uint16':
    stored.check_dtype(dtype, name, folder)
  return StoredArray(tuple(shape), read, chunk_rows)


def _verify(path: str) -> None:
  """Raises a `ConfigError` unless every chunk of every array is there and whole, as far as its last bytes tell."""
  folder, index = _read_index(path)
  if folder.startswith('gs://'):
    return  # A request for each of up to 100,000 chunks; what is missing is found when it is read.
  for name, leaf in _leaves(index['optimizer']):
    if isinstance(leaf, dict):
      place = pathlib.Path(folder) / _relative_path(folder, name, leaf)
      try:
        problem = _chunk_problem(json.loads((place / '.zarray').read_text()), place)
      except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f'.zarray: {error}'
      if problem:
        raise ConfigError(f'{name} in {folder} is incomplete ({problem}); copy the folder again.')


def _chunk_problem(metadata: Mapping[str, Any], place: pathlib.Path) -> str:
  """Returns what is wrong with the chunks of a zarr array, or the empty string."""
  shape, chunks = metadata['shape'], metadata['chunks']
  itemsize = 2 if metadata['dtype'] == 'bfloat16' else np.dtype(metadata['dtype']).itemsize
  size = itemsize * math.prod(chunks)
  is_gzip = (metadata.get('compressor') or {}).get('id') == 'gzip'
  counts = [range(-(-length // chunk)) for length, chunk in zip(shape, chunks, strict=True)]
  for numbers in itertools.product(*counts):
    chunk = place / (metadata.get('dimension_separator', '.').join(map(str, numbers)) or '0')
    if not chunk.is_file():
      return f'{chunk.name} is missing'
    with chunk.open('rb') as file:
      length = file.seek(0, os.SEEK_END)
      if is_gzip:
        file.seek(max(0, length - 4))  # gzip ends with the number of bytes before compression
        if int.from_bytes(file.read(4), 'little') != size % 2**32:
          return f'{chunk.name} is cut off after {length} bytes'
      elif metadata.get('compressor') is None and length != size:
        return f'{chunk.name} has {length} bytes, not {size}'
  return ''


def _relative_path(folder: str, name: str, spec: Mapping[str, Any]) -> str:
  """Returns where the array of a TensorStore spec of the index lies, from the folder of the checkpoint."""
  kvstore = spec['kvstore']
  # Before version 0.1.14 TensorStore had the path beside the kvstore and not in it.
  relative = (kvstore.get('path') if isinstance(kvstore, dict) else None) or spec.get('path')
  if not relative or os.path.isabs(relative) or '..' in relative.split('/'):
    raise ConfigError(f'{name} in {folder} lies at {relative!r}; the paths of a T5X checkpoint are relative to it.')
  return relative


def _kvstore(folder: str, relative: str) -> dict[str, str]:
  """Returns where TensorStore finds the files, whichever driver (file, gfile, gcs) the writer used."""
  if match := re.fullmatch(r'gs://([^/]+)/?(.*)', folder):
    path = '/'.join(part.strip('/') for part in (match[2], relative) if part)
    return {'driver': 'gcs', 'bucket': match[1], 'path': path and f'{path}/'}
  return {'driver': 'file', 'path': os.path.join(folder, relative).rstrip('/') + '/'}


def _read_tensorstore(folder: str, name: str, spec: Mapping[str, Any], box: Index) -> np.ndarray:
  """Reads a box of the array of a TensorStore spec of the index."""
  relative = _relative_path(folder, name, spec)
  # Chunks and compressor are what the folder itself says. A chunk that is not there must not be read as zeros.
  place = {'driver': 'zarr', 'kvstore': _kvstore(folder, relative), 'fill_missing_data_reads': False}
  try:
    array = tensorstore.open(place, open=True, read=True).result()
    if 'shape' in spec.get('metadata', {}) and array.shape != tuple(spec['metadata']['shape']):
      raise ValueError(f'it has the shape {array.shape}, the index says {tuple(spec["metadata"]["shape"])}')
    return array[box].read().result() if box else array.read().result()
  except ValueError as error:
    cause = str(error).split(' [')[0]  # without TensorStore's dump of the spec and its own source lines
    raise ConfigError(
      f'{name} cannot be read from {folder} ({cause}); the copy is incomplete or damaged. Copy the folder again.'
    ) from error
