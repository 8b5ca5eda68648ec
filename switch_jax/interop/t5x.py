"""T5X's checkpoints: a msgpack index named `checkpoint`, and a zarr folder beside it for every large array.

The index is a tree. A leaf is an array, stored right there, or a TensorStore spec that says where the array lies and
what shape it has, so shapes are known without opening a single folder. T5X's other format is Orbax's, in the folder
`state` of a checkpoint.
"""

import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import tensorstore

from switch_jax.config import ConfigError, first_line
from switch_jax.folders import checked_json
from switch_jax.folders.checked_json import Fields, shown
from switch_jax.folders.regular_files import regular_file
from switch_jax.interop import orbax_arrays, stored, t5x_scanned, zarr_chunks
from switch_jax.interop.stored import Checkpoint, Index, StoredArray
from switch_jax.interop.zarr_chunks import DTYPES, Description

# How Flax marks arrays and numpy scalars in msgpack; both are packed as (shape, dtype, bytes).
_ARRAY_CODES = (1, 3)
# Names of parameters have at most ten parts.
_MAX_DEPTH = 32


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
  step = _step(path, found['state.step'].read()) if 'state.step' in found and not found['state.step'].shape else None
  return below('target.'), below('state.param_states.'), step


def _from_index(path: str) -> tuple[dict[str, StoredArray], dict[str, StoredArray], int | None]:
  """Returns parameters, optimizer slots and step of a native checkpoint."""
  folder, index = _read_index(path)
  target, state = index['optimizer'].get('target'), index['optimizer'].get('state')
  stored_arrays = lambda tree: {  # noqa: E731
    name: _stored_array(folder, name, leaf) for name, leaf in _leaves(folder, tree if isinstance(tree, dict) else {})
  }
  state = state if isinstance(state, dict) else {}
  step = state.get('step')
  if isinstance(step, dict):
    step = _stored_array(folder, 'step', step, of_parameter=False)
    step = step.fetch(()) if not step.shape else None
  step = None if step is None else _step(folder, step)
  return stored_arrays(target), stored_arrays(state.get('param_states')), step


def _step(path: str, value: Any) -> int:
  """Returns a number of updates, which files hold as a number or as an array of one."""
  is_number = isinstance(value, int | float | np.ndarray | np.generic) and np.ndim(value) == 0
  if not is_number or np.asarray(value).dtype.kind not in 'iuf' or not 0 <= value < 2**53 or value != int(value):
    raise ConfigError(
      f'{path} says that the step is {shown(value)}; it must be an integer of at least 0. Copy it again.'
    )
  return int(value)


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
      f'the index of {path} ({len(raw)} bytes) is not a whole msgpack file ({first_line(error)}); the copy is '
      'incomplete or it is no T5X checkpoint. Copy the folder again.'
    ) from error
  if not isinstance(index, dict) or not isinstance(index.get('optimizer'), dict):
    found = (
      ', '.join(shown(key).strip('"\'') for key in list(index)[:5]) if isinstance(index, dict) else type(index).__name__
    )
    raise ConfigError(f'the index of {path} holds {found}; a T5X checkpoint has the keys version and optimizer.')
  return folder, index


def _read_local_index(path: str) -> tuple[str, bytes]:
  place = pathlib.Path(path)
  if not place.exists():
    parent = next(p for p in place.absolute().parents if p.exists())
    raise ConfigError(f'there is no {path} (the nearest folder that exists is {parent}); give a checkpoint_<step>.')
  if place.is_dir():
    if not (place / 'checkpoint').exists():
      found = stored.describe_folder(os.listdir(place))
      raise ConfigError(f'{path} is no T5X checkpoint, whose folder has a file named checkpoint: {found}.')
    place /= 'checkpoint'
  file = regular_file(place.parent, place.name)
  try:
    return str(place.parent.absolute()), file.read_bytes()
  except OSError as error:
    raise ConfigError(f'{file} cannot be read ({first_line(error)}); see to its rights.') from error


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
  name = DTYPES.get(name, name)
  return np.dtype(ml_dtypes.bfloat16 if name == 'bfloat16' else name)


def _is_spec(node: Mapping[str, Any]) -> bool:
  return 'driver' in node and 'kvstore' in node


def _leaves(folder: str, tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields names, joined by `/`, and arrays or specs. A None is a parameter that its optimizer left out."""
  if prefix.count('/') > _MAX_DEPTH:
    raise ConfigError(f'the index of {folder} is nested more than {_MAX_DEPTH} deep; it is damaged. Copy it again.')
  for key, node in tree.items():
    if not isinstance(key, str) or '/' in key:
      raise ConfigError(
        f'the index of {folder} has the key {shown(key)}; keys are names. It is damaged, copy it again.'
      )
    name = f'{prefix}{key}'
    if isinstance(node, dict) and not _is_spec(node):
      yield from _leaves(folder, node, f'{name}/')
    elif node is not None:
      yield name, node


def _stored_array(folder: str, name: str, leaf: Any, of_parameter: bool = True) -> StoredArray:
  """Returns a leaf of the index as an array to be read on demand."""
  chunk_rows = 1
  if isinstance(leaf, dict):
    fields = Fields(f'{name} in {folder}', leaf)
    metadata = fields.object('metadata', {})
    if 'shape' not in metadata.values or not _is_spec(leaf) or leaf['driver'] != 'zarr':
      raise ConfigError(
        f'{name} in {folder} is stored as {shown(leaf)}; only zarr arrays with shape and dtype are read.'
      )
    shape, chunks = metadata.sizes('shape'), metadata.sizes('chunks', [], minimum=1)
    dtype = fields.text('dtype') if leaf.get('dtype') else metadata.text('dtype')
    chunk_rows = chunks[0] if chunks else 1
    _relative_path(folder, name, leaf)
    read = functools.partial(_read, folder, name, leaf, shape)
  elif isinstance(leaf, np.ndarray):
    shape, dtype, read = leaf.shape, leaf.dtype.name, lambda box: leaf[box]
  else:
    raise ConfigError(
      f'{name} in {folder} is {shown(leaf)}; the leaves of a T5X checkpoint are arrays or zarr folders.'
    )
  dtype = DTYPES.get(dtype, dtype)
  if of_parameter and dtype != 'uint16':
    stored.check_dtype(dtype, name, folder)
  return StoredArray(shape, read, chunk_rows)


def _verify(path: str) -> None:
  """Raises a `ConfigError` unless every chunk of every array is there and whole, as far as its last bytes tell."""
  folder, index = _read_index(path)
  if folder.startswith('gs://'):
    return  # A request for each of up to 100,000 chunks; what is missing is found when it is read.
  for name, leaf in _leaves(folder, index['optimizer']):
    if isinstance(leaf, dict):
      relative = _relative_path(folder, name, leaf)
      try:
        description, _ = _describe(folder, relative)
        box = tuple(slice(0, size) for size in description.shape)
        problem = next(
          filter(None, (_chunk_problem(folder, relative, description, n) for n in description.chunks_of(box))), ''
        )
      except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
          raise
        problem = f'.zarray: {first_line(error)}'
      if problem:
        raise ConfigError(f'{name} in {folder} is incomplete ({problem}); copy the folder again.')


def _chunk_problem(folder: str, relative: str, description: Description, numbers: tuple[int, ...]) -> str:
  """Returns what is wrong with a chunk of a zarr array, or the empty string."""
  key, size = description.key(numbers), description.chunk_bytes
  chunk = regular_file(folder, f'{relative}/{key}')
  if not chunk.exists():
    return f'{key} is missing'
  with chunk.open('rb') as file:
    length = file.seek(0, os.SEEK_END)
    if description.compressor == 'gzip':
      file.seek(max(0, length - 4))  # gzip ends with the number of bytes before compression
      if int.from_bytes(file.read(4), 'little') != size % 2**32:
        return f'{key} is cut off after {length} bytes'
    elif description.compressor is None and length != size:
      return f'{key} has {length} bytes, not {size}'
  return ''


def _relative_path(folder: str, name: str, spec: Mapping[str, Any]) -> str:
  """Returns where the array of a TensorStore spec of the index lies, from the folder of the checkpoint."""
  kvstore = spec['kvstore']
  # Before version 0.1.14 TensorStore had the path beside the kvstore and not in it.
  relative = (kvstore.get('path') if isinstance(kvstore, dict) else None) or spec.get('path')
  if (
    not relative
    or not isinstance(relative, str)
    or os.path.isabs(relative)
    or {'..', ''} & {*relative.rstrip('/').split('/')}
  ):
    raise ConfigError(
      f'{name} in {folder} lies at {shown(relative)}; the paths of a T5X checkpoint are relative to it.'
    )
  return relative.rstrip('/')


def _kvstore(folder: str, relative: str) -> dict[str, str]:
  """Returns where TensorStore finds the files, whichever driver (file, gfile, gcs) the writer used."""
  if match := re.fullmatch(r'gs://([^/]+)/?(.*)', folder):
    path = '/'.join(part.strip('/') for part in (match[2], relative) if part)
    return {'driver': 'gcs', 'bucket': match[1], 'path': path and f'{path}/'}
  return {'driver': 'file', 'path': os.path.join(folder, relative).rstrip('/') + '/'}


def _describe(folder: str, relative: str) -> tuple[Description, Callable[[str], bytes]]:
  """Returns what an array's `.zarray` says, and what reads its chunks by name.

  Raises:
    ConfigError: the description contradicts itself.
    ValueError, OSError: a file is missing or cannot be read.
  """
  if folder.startswith('gs://'):
    store = tensorstore.KvStore.open(_kvstore(folder, relative)).result()

    def read(key: str) -> bytes:
      found = store.read(key).result()
      if found.state != 'value':
        raise ValueError(f'{key} is missing')
      return found.value
  else:

    def read(key: str) -> bytes:
      path = regular_file(folder, f'{relative}/{key}')
      if not path.exists():
        raise ValueError(f'{key} is missing: {path} does not exist')
      return path.read_bytes()

  place = f'{folder}/{relative}/.zarray'
  return zarr_chunks.describe_v2(checked_json.parse(read('.zarray'), place), place), read


def _read(folder: str, name: str, spec: Mapping[str, Any], shape: tuple[int, ...], box: Index) -> np.ndarray:
  """Reads a box of the array of a TensorStore spec of the index, which has this shape."""
  relative = _relative_path(folder, name, spec)
  try:
    # Chunks and compressor are what the folder itself says. A chunk that is not there must not be read as zeros.
    description, read = _describe(folder, relative)
    if description.shape != shape:
      raise ValueError(f'it has the shape {description.shape}, the index says {shape}')
    box = box or tuple(slice(0, size) for size in shape)
    if not folder.startswith('gs://'):  # before memory for all of them is asked for
      for numbers in description.chunks_of(box):
        _check_chunk(folder, relative, description, numbers)
    if zarr_chunks.is_read_here(description):
      return zarr_chunks.read_box(description, box, read)
    place = {'driver': 'zarr', 'kvstore': _kvstore(folder, relative), 'fill_missing_data_reads': False}
    return tensorstore.open(place, open=True, read=True).result()[box].read().result()
  except ConfigError:
    raise
  except Exception as error:  # TensorStore's are of many kinds
    cause = first_line(error).split(' [')[0]  # without TensorStore's dump of the spec and its own source lines
    raise ConfigError(
      f'{name} cannot be read from {folder} ({cause}); the copy is incomplete or damaged. Copy the folder again.'
    ) from error


def _check_chunk(folder: str, relative: str, description: Description, numbers: tuple[int, ...]) -> None:
  """Raises a `ValueError` unless a chunk is there and has a size that can be right."""
  key = description.key(numbers)
  path = regular_file(folder, f'{relative}/{key}')
  if not path.exists():
    raise ValueError(f'{key} is missing: {path} does not exist')
  with path.open('rb') as file:
    try:
      zarr_chunks.check_encoded(description, file.read(18), path.stat().st_size)
    except ValueError as error:
      raise ValueError(f'chunk {key}: {error}') from error
