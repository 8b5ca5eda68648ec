"""Our own checkpoints, read array by array: what converts them never has the whole model in memory."""

import re
from typing import Any

import numpy as np
from etils import epath

from switch_jax.checkpoints import CheckpointError, CheckpointStore
from switch_jax.checkpoints.compatibility import has_two_routers, two_routers
from switch_jax.config import ConfigError, ModelConfig, first_line
from switch_jax.folders.model_dir import CONFIG, FILES, STATE, ModelDir, split_step
from switch_jax.interop import moments, orbax_arrays, stored
from switch_jax.interop.scanned import scanned_name, scanned_rows
from switch_jax.interop.stored import Checkpoint, StoredArray
from switch_jax.model import parameter_shapes

_MAX_LAYERS = 10_000
_MOMENTS = re.compile(r'opt_state\.\d+\.moments\.(.*)\.(v|v_row|v_col)')


def find_step(path: str, setting: str | None = None) -> tuple[CheckpointStore, int] | None:
  """Returns the checkpoints of a MODEL_DIR and the step that a path means, or None for what is none of ours.

  Args:
    path: a MODEL_DIR, whose newest step is meant, or `MODEL_DIR/checkpoints/<step>`.
    setting: the field that names it, for errors.

  Raises:
    CheckpointError: that step is not complete.
  """
  place, step = split_step(path)
  store = CheckpointStore(place.path)
  if step is None:
    step = store.latest_step()
  elif not place.step(step).is_dir():
    return None
  elif step not in (steps := store.steps()):
    which = f'{setting} is {path!r}, which' if setting else path
    there = ', '.join(map(str, steps)) or 'none'
    raise CheckpointError(f'{which} is no complete checkpoint; complete steps beside it: {there}.')
  return None if step is None else (store, step)


def open_checkpoint(path: str) -> Checkpoint:
  """Opens a checkpoint of our own; reads descriptions only.

  Args:
    path: a MODEL_DIR, whose newest step is read, or `MODEL_DIR/checkpoints/<step>`; local or `gs://`.

  Raises:
    ConfigError: there is no complete checkpoint, or its parameters do not fit its config.json.
    CheckpointError: files are missing or damaged.
  """
  found = find_step(path)
  if found is None:
    folder = epath.Path(path)
    if steps := ModelDir(path).numbered_steps():
      raise CheckpointError(
        f'{path} has no complete checkpoint: in {", ".join(map(str, steps))} there is no {CONFIG}, {FILES} or '
        f'{STATE}/_METADATA, or it is no regular file. Copy the folder again, or name another.'
      )
    what = stored.describe_folder(p.name for p in folder.iterdir()) if folder.is_dir() else 'there is no such folder'
    raise ConfigError(
      f'{path} is no checkpoint of switch_jax ({what}); give a MODEL_DIR, or MODEL_DIR/checkpoints/<step>.'
    )
  store, step = found
  config, record, arrays, slots = open_arrays(store, step)
  left_out = []
  shapes = {name: array.shape for name, array in arrays.items()}
  if config.num_encoder_layers + config.num_decoder_layers > len(shapes):  # before so many are traced
    raise ConfigError(f'{store.path(step)}: its config.json has more layers than there are arrays. Copy it again.')
  expected = parameter_shapes(config)
  if shapes != expected:
    differ = {name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name)}
    raise ConfigError(
      f'{store.path(step)}: {stored.enumerate_some(differ, 3)} do not fit the model of its config.json.'
    )
  second: dict[str, dict[str, StoredArray]] = {}
  for name, array in slots.items():
    parameter, _, slot = name.rpartition('/')
    second.setdefault(parameter, {})[slot] = array
  if second and set(second) != set(shapes):
    left_out.append('an optimizer state that is not that of all parameters')
    second = {}
  optimizer = (record.get('run') or {}).get('optimizer')
  if not second and isinstance(optimizer, dict) and optimizer.get('name') == 'adamw':
    left_out.append('the state of AdamW, for which only our own format has a place')
  in_t5x = moments.exchange(second, shapes) if second else None
  return Checkpoint(path, arrays, config=config, step=step, moments=in_t5x, left_out=tuple(left_out))


def open_arrays(
  store: CheckpointStore, step: int
) -> tuple[ModelConfig, dict[str, Any], dict[str, StoredArray], dict[str, StoredArray]]:
  """Opens the arrays of a step of ours, of any model.

  Returns:
    The model; config.json; the parameters and Adafactor's slots by T5X name, layers one by one.

  Raises:
    CheckpointError: files are missing or damaged, or nothing says which model it is.
  """
  store.check_files(step)
  record = store.read_config(step)
  if not isinstance(record.get('model'), dict):
    raise CheckpointError(f'{store.path(step)}/config.json records no model, so nothing says what the arrays are.')
  config = model_of(store, step, record)
  arrays, slots = {}, {}
  for name, array in orbax_arrays.open_arrays(str(store.path(step) / STATE)).items():
    if name.startswith('params.'):
      arrays[name.removeprefix('params.').replace('.', '/')] = array
    elif match := _MOMENTS.fullmatch(name):
      slots[f'{match[1].replace(".", "/")}/{match[2]}'] = array
  if has_two_routers(arrays):
    raise two_routers(store.path(step))
  if config.scan_layers:
    arrays, slots = (separate(tree, config) for tree in (arrays, slots))
  return config, record, arrays, slots


def model_of(store: CheckpointStore, step: int, record: dict[str, Any]) -> ModelConfig:
  """Returns the model that config.json of a step records.

  Raises:
    CheckpointError: it is none, or larger than anything that could be built.
  """
  where = f'{store.path(step)}/config.json'
  try:
    config = ModelConfig.from_json(record['model'])
  except (TypeError, ValueError, ArithmeticError) as error:  # fields that are missing, of wrong types or absurd
    raise CheckpointError(
      f'{where} records a model that cannot be built: {first_line(error)} The file is damaged; copy it again.'
    ) from error
  if config.num_encoder_layers + config.num_decoder_layers > _MAX_LAYERS:
    raise CheckpointError(
      f'{where} records {config.num_encoder_layers} and {config.num_decoder_layers} layers; a model has at most '
      f'{_MAX_LAYERS}. The file is damaged; copy the checkpoint again.'
    )
  return config


def record(path: str) -> dict[str, Any]:
  """Returns what config.json of a checkpoint of our own holds."""
  store, step = find_step(path)
  return store.read_config(step)


def separate(arrays: dict[str, StoredArray], config: ModelConfig) -> dict[str, StoredArray]:
  """Returns arrays of scanned blocks, `encoder/blocks/layers_0/...`, as those of separate layers."""
  result = {}
  for name, array in arrays.items():
    rows = scanned_rows(name, config)
    if rows is None:
      result[name] = array
      continue
    if not array.shape or array.shape[0] != len(rows):
      raise ConfigError(
        f'{name} has the shape {array.shape}, and config.json says that its first axis is {len(rows)} blocks; the '
        'checkpoint is damaged. Copy it again.'
      )
    for block, layer in enumerate(rows):
      result[layer] = _row(array, block)
  return result


def together(arrays: dict[str, StoredArray], config: ModelConfig) -> dict[str, StoredArray]:
  """Returns arrays of separate layers as those of scanned blocks, the reverse of `separate`."""
  blocks: dict[str, dict[int, StoredArray]] = {}
  for name, array in arrays.items():
    block_name, block = scanned_name(name, config)
    blocks.setdefault(block_name, {})[block] = array
  return {
    name: layers[-1] if -1 in layers else _stacked([layers[block] for block in sorted(layers)])
    for name, layers in blocks.items()
  }


def _row(array: StoredArray, block: int) -> StoredArray:
  shape = array.shape[1:]
  fetch = lambda box: array.read((slice(block, block + 1), *box))[0]  # noqa: E731
  # The file may keep all of a block together, so one reading of it is the cheapest.
  return StoredArray(shape, fetch, shape[0] if shape else 1)


def _stacked(layers: list[StoredArray]) -> StoredArray:
  fetch = lambda box: np.stack([layer.read(box[1:]) for layer in layers[box[0]]])  # noqa: E731
  return StoredArray((len(layers), *layers[0].shape), fetch)
