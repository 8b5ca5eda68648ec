"""Arrays of a tree that Orbax wrote, opened through TensorStore: Orbax itself reads whole trees, this reads boxes.

Orbax keeps every array as zarr under its path in the tree, joined by dots, in one OCDBT database or in a folder each.
Both T5X's newer checkpoints and our own are such trees.
"""

import functools
import math
import os
import re
from typing import Any

import numpy as np
import tensorstore
from etils import epath

from switch_jax.config import ConfigError, first_line
from switch_jax.folders import checked_json
from switch_jax.folders.regular_files import check_tree
from switch_jax.interop import stored, zarr_chunks
from switch_jax.interop.stored import Index, StoredArray
from switch_jax.interop.zarr_chunks import Description

_ZARR, _ZARR3 = '/.zarray', '/zarr.json'
_DESCRIBE = {_ZARR: zarr_chunks.describe_v2, _ZARR3: zarr_chunks.describe_v3}
# Chunks of zeros are left out, so a small folder may hold a large array; but no trained model is mostly zeros.
_FREE_BYTES, _BYTES_PER_STORED = 2**28, 64


def is_folder(path: str) -> bool:
  """Whether Orbax wrote a tree here, local or `gs://...`."""
  folder = epath.Path(path)
  return any((folder / name).exists() for name in ('manifest.ocdbt', '_METADATA'))


def open_arrays(path: str) -> dict[str, StoredArray]:
  """Returns the arrays of a tree by name (`params.encoder.encoder_norm.scale`); reads their descriptions only.

  Args:
    path: the folder with `_METADATA`; local, or `gs://...`.

  Raises:
    ConfigError: a file is missing or damaged, is not regular or lies elsewhere; or an array is of a type that float32
      does not hold, or larger than the files can say.
  """
  stored_bytes = None if '://' in path else check_tree(path)
  base = _kvstore(path)
  try:
    store = tensorstore.KvStore.open(base).result()
    keys = [key.decode() for key in store.list().result()]
    found = {}
    for key in keys:
      ending = next((e for e in (_ZARR, _ZARR3) if key.endswith(e)), None)
      if ending:
        values = checked_json.parse(store.read(key).result().value, f'{key} of {path}')
        description = _DESCRIBE[ending](values, f'{key} of {path}')
        found[key.removesuffix(ending)] = _stored_array(path, base, key.removesuffix(ending), description)
  except ConfigError:
    raise
  except Exception as error:  # TensorStore's are of many kinds
    raise _damaged(path, error) from error
  if not found:
    raise ConfigError(f'{path} holds no arrays; the copy is incomplete. Copy the folder again.')
  total = 4 * sum(math.prod(array.shape) for array in found.values())
  if stored_bytes is not None and total > _FREE_BYTES + _BYTES_PER_STORED * stored_bytes:
    raise ConfigError(
      f'the arrays of {path} would have {total:,} bytes, and its files have {stored_bytes:,}; the copy is incomplete '
      'or damaged. Copy the folder again.'
    )
  return found


def _kvstore(path: str) -> Any:
  is_database = (epath.Path(path) / 'manifest.ocdbt').exists()
  if match := re.fullmatch(r'gs://([^/]+)/?(.*)', path):
    base = {'driver': 'gcs', 'bucket': match[1], 'path': match[2].rstrip('/') + '/'}
  else:
    base = {'driver': 'file', 'path': os.path.abspath(path) + '/'}
  return {'driver': 'ocdbt', 'base': base} if is_database else base


def _stored_array(path: str, base: Any, name: str, description: Description) -> StoredArray:
  kvstore = dict(base)
  kvstore['path'] = base.get('path', '') + f'{name}/'
  shape, dtype, chunks = description.shape, description.dtype, description.chunks
  if shape or not dtype.startswith('int'):  # counters are scalars
    stored.check_dtype(dtype, name, path)
  return StoredArray(shape, functools.partial(_read, path, name, kvstore, description), chunks[0] if chunks else 1)


def _read(path: str, name: str, kvstore: Any, description: Description, box: Index) -> np.ndarray:
  box = box or tuple(slice(0, size) for size in description.shape)
  try:
    store = tensorstore.KvStore.open(kvstore).result()

    def read(key: str) -> bytes | None:
      found = store.read(key).result()
      return found.value if found.state == 'value' else None  # Orbax leaves out chunks that are all zeros

    if zarr_chunks.is_read_here(description):
      return zarr_chunks.read_box(description, box, read)
    if description.driver == 'zarr' and '://' not in path:  # far away, every request costs
      for numbers in description.chunks_of(box):
        if (raw := read(description.key(numbers))) is not None:
          zarr_chunks.check_encoded(description, raw[:18], len(raw))
    spec = {'driver': description.driver, 'kvstore': kvstore}
    return tensorstore.open(spec, open=True, read=True).result()[box].read().result()
  except ConfigError:
    raise
  except Exception as error:  # TensorStore's are of many kinds
    raise _damaged(f'{name} of {path}', error) from error


def _damaged(what: str, error: Exception) -> ConfigError:
  cause = first_line(error).split(' [')[0]  # without TensorStore's dump of the spec and its own source lines
  return ConfigError(f'{what} cannot be read ({cause}); the copy is incomplete or damaged. Copy the folder again.')
