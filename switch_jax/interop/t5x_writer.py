"""Writes a native T5X checkpoint: zarr folders and, last, the msgpack index that names them."""

from typing import Any

import msgpack
import numpy as np
from etils import epath

from switch_jax.interop import stored
from switch_jax.interop.stored import Checkpoint, StoredArray
from switch_jax.interop.zarr_files import ZarrArray, ZarrOutputs

VERSION = 3


class T5xWriter(ZarrOutputs):
  """One checkpoint that is being written.

  Args:
    folder: where; it exists.
    checkpoint: what to write, with Adafactor's moments or without.
    dtype: of the parameters, `float32` or `bfloat16`; moments are float32.
  """

  def __init__(self, folder: epath.Path, checkpoint: Checkpoint, dtype: str):
    self._folder, self._step = folder, checkpoint.step or 0
    self.outputs: dict[str, StoredArray] = {f'target/{name}': array for name, array in checkpoint.arrays.items()}
    for name, slots in (checkpoint.moments or {}).items():
      self.outputs |= {f'state/param_states/{name}/{slot}': array for slot, array in slots.items()}
    self._has_moments = checkpoint.moments is not None
    self._files = {
      name: ZarrArray(
        str(folder / name.replace('/', '.')), array.shape, dtype if name.startswith('target/') else 'float32'
      )
      for name, array in self.outputs.items()
    }

  def finish(self) -> None:
    """Writes the index."""
    leaves: dict[str, Any] = {'state/step': _packed(np.array(self._step, np.int32))}
    for name, file in self._files.items():
      spec = file.spec()
      spec['kvstore'] = {'driver': 'file', 'path': f'{name.replace("/", ".")}/'}
      leaves[name] = spec
      if self._has_moments and name.startswith('target/'):
        for slot in ('m', 'v', 'v_row', 'v_col'):  # one of shape (1,) is not used
          leaves.setdefault(
            f'state/param_states/{name.removeprefix("target/")}/{slot}', _packed(np.zeros(1, np.float32))
          )
    index = {'version': VERSION, 'optimizer': stored.nest(leaves)}
    (self._folder / 'checkpoint').write_bytes(msgpack.packb(index))


def _packed(array: np.ndarray) -> msgpack.ExtType:
  """Returns a small array as Flax packs it into msgpack."""
  return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))
