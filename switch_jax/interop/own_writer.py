"""Writes a checkpoint of our own array by array: what `CheckpointStore` reads, without a save of the whole tree.

Orbax saves whole trees. Its format is open, though: every array is zarr under its path in the tree, and `_METADATA`
lists the paths. A test reads the result with Orbax itself.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

import switch_jax
from switch_jax.checkpoints import checksums
from switch_jax.config import ModelConfig
from switch_jax.folders.model_dir import COMMITTED, CONFIG, DATA, FILES, STATE, ModelDir
from switch_jax.folders.remote import is_remote
from switch_jax.interop import moments, own, stored
from switch_jax.interop.stored import Checkpoint, StoredArray
from switch_jax.interop.zarr_files import ZarrArray, ZarrOutputs

_DICT, _SEQUENCE = 2, 1  # Orbax's kinds of keys


class OwnWriter(ZarrOutputs):
  """One MODEL_DIR with one step that is being written.

  Args:
    folder: the MODEL_DIR; it exists.
    checkpoint: what to write.
    config: its model; with `scan_layers` the layers are stacked.
    record: what config.json is to hold beside the model.
  """

  def __init__(self, folder: epath.Path, checkpoint: Checkpoint, config: ModelConfig, record: Mapping[str, Any]):
    step = checkpoint.step or 0
    self._folder = ModelDir(folder).step(step)
    self._record = {'version': switch_jax.__version__, 'target_tokens': 0, **record, 'model': config.to_json()}
    params = dict(checkpoint.arrays)
    slots: dict[str, StoredArray] = {}
    if checkpoint.moments:
      for name, mine in moments.exchange(checkpoint.moments, checkpoint.shapes()).items():
        slots |= {f'{name}/{slot}': array for slot, array in mine.items()}
    if config.scan_layers:
      params, slots = own.together(params, config), own.together(slots, config)
    count = stored.in_memory(np.array(step, np.int32))
    self.outputs = {'step': count} | {f'params/{name}': array for name, array in params.items()}
    if slots:
      self.outputs |= {f'opt_state/0/moments/{name}': array for name, array in slots.items()}
      self.outputs |= {'opt_state/0/count': count, 'opt_state/1/count': count}
    state = self._folder / STATE
    counters = ('step', 'opt_state/0/count', 'opt_state/1/count')
    self._files = {
      name: ZarrArray(str(state / name.replace('/', '.')), array.shape, 'int32' if name in counters else 'float32')
      for name, array in self.outputs.items()
    }

  def finish(self) -> None:
    """Writes what makes the arrays a tree, and the step complete."""
    state = self._folder / STATE
    (self._folder / DATA).mkdir(parents=True, exist_ok=True)
    tree = {str(tuple(name.split('/'))): _tree_entry(name, file) for name, file in self._files.items()}
    metadata = {'tree_metadata': tree, 'use_ocdbt': False, 'use_zarr3': False}
    metadata |= {'store_array_data_equal_to_fill_value': True, 'custom_metadata': None}
    (state / '_METADATA').write_text(json.dumps(metadata))
    handlers = {STATE: 'orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler'}
    composite = {'item_handlers': handlers, 'metrics': {}, 'performance_metrics': {}, 'custom_metadata': {}}
    (self._folder / '_CHECKPOINT_METADATA').write_text(json.dumps(composite))
    (self._folder / CONFIG).write_text(json.dumps(self._record, indent=2, allow_nan=False) + '\n')
    folder = epath.Path(self._folder)
    checksums.write_record(folder / FILES, checksums.measure(folder, checksums.list_files(folder)))
    if is_remote(self._folder):
      (self._folder / COMMITTED).write_text('committed\n')  # Orbax's mark where a folder cannot appear in one move


def _tree_entry(name: str, file: ZarrArray) -> dict[str, Any]:
  keys = name.split('/')
  kinds = [_SEQUENCE if keys[0] == 'opt_state' and i == 1 else _DICT for i in range(len(keys))]
  value = {'value_type': 'jax.Array', 'skip_deserialize': False, 'write_shape': list(file.shape)}
  return {
    'key_metadata': [{'key': key, 'key_type': kind} for key, kind in zip(keys, kinds, strict=True)],
    'value_metadata': value,
  }
