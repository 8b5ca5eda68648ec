"""Arrays of a tree that Orbax wrote, opened through TensorStore: Orbax itself reads whole trees, this reads boxes.

Orbax keeps every array as zarr under its path in the tree, joined by dots, in one OCDBT database or in a folder each.
Both T5X's newer checkpoints and our own are such trees.
"""

import functools
import json
import os
import re
from typing import Any

import numpy as np
import tensorstore
from etils import epath

from switch_jax.config import ConfigError
from switch_jax.interop import stored
from switch_jax.interop.stored import Index, StoredArray

_ZARR, _ZARR3 = '/.zarray', '/zarr.json'
_DTYPES = {'<f4': 'float32', '<f2': 'float16', '<f8': 'float64', '<i4': 'int32', '<i8': 'int64'}


def is_folder(path: str) -> bool:
  """Whether Orbax wrote a tree here, local or `gs://...`."""
  folder = epath.Path(path)
  return any((folder / name).exists() for name in ('manifest.ocdbt', '_METADATA'))


def open_arrays(path: str) -> dict[str, StoredArray]:
  """Returns the arrays of a tree by name (`params.encoder.encoder_norm.scale`); reads their descriptions only.

  Args:
    path: the folder with `_METADATA`; local, or `gs://...`.

  Raises:
    ConfigError: a file is missing or damaged, or an array is of a type that float32 does not hold.
  """
  base = _kvstore(path)
  try:
    store = tensorstore.KvStore.open(base).result()
    keys = [key.decode() for key in store.list().result()]
    found = {}
    for key in keys:
      ending = next((e for e in (_ZARR, _ZARR3) if key.endswith(e)), None)
      if ending:
        description = json.loads(store.read(key).result().value)
        found[key.removesuffix(ending)] = _stored_array(path, base, key.removesuffix(ending), ending, description)
  except ValueError as error:  # TensorStore's, and that of JSON
    raise _damaged(path, error) from error
  if not found:
    raise ConfigError(f'{path} holds no arrays; the copy is incomplete. Copy the folder again.')
  return found


def _kvstore(path: str) -> Any:
  is_database = (epath.Path(path) / 'manifest.ocdbt').exists()
  if match := re.fullmatch(r'gs://([^/]+)/?(.*)', path):
    base = {'driver': 'gcs', 'bucket': match[1], 'path': match[2].rstrip('/') + '/'}
  else:
    base = {'driver': 'file', 'path': os.path.abspath(path) + '/'}
  return {'driver': 'ocdbt', 'base': base} if is_database else base


def _stored_array(path: str, base: Any, name: str, ending: str, description: dict[str, Any]) -> StoredArray:
  if ending == _ZARR:
    driver, dtype, chunks = 'zarr', description['dtype'], description['chunks']
  else:
    driver, dtype = 'zarr3', description['data_type']
    chunks = description['chunk_grid']['configuration']['chunk_shape']
  kvstore = dict(base)
  kvstore['path'] = base.get('path', '') + f'{name}/'
  spec = {'driver': driver, 'kvstore': kvstore}
  # Orbax leaves out chunks that are all zeros.
  dtype = _DTYPES.get(dtype, dtype)
  if description['shape'] or not dtype.startswith('int'):  # counters are scalars
    stored.check_dtype(dtype, name, path)
  read = functools.partial(_read, path, name, spec)
  return StoredArray(tuple(description['shape']), read, chunks[0] if chunks else 1)


def _read(path: str, name: str, spec: dict[str, Any], box: Index) -> np.ndarray:
  try:
    array = tensorstore.open(spec, open=True, read=True).result()
    return (array[box] if box else array).read().result()
  except ValueError as error:
    raise _damaged(f'{name} of {path}', error) from error


def _damaged(what: str, error: Exception) -> ConfigError:
  cause = str(error).split(' [')[0]  # without TensorStore's dump of the spec and its own source lines
  return ConfigError(f'{what} cannot be read ({cause}); the copy is incomplete or damaged. Copy the folder again.')
