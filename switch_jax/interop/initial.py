"""Parameters that a run begins with: those of a checkpoint, laid out for this run's model and mesh."""

from typing import Any

import jax
import numpy as np
from etils import epath

from switch_jax.checkpoints import CheckpointError, CheckpointStore
from switch_jax.config import ConfigError, ModelConfig
from switch_jax.interop.scanned import separate_layers, stack_layers
from switch_jax.interop.stored import describe_folder


def initial_parameters(path: str, model_config: ModelConfig, abstract_params: Any) -> Any:
  """Reads the parameters of a checkpoint, and nothing else of it.

  Args:
    path: a MODEL_DIR of switch_jax (its newest step is read), or one of its steps, `MODEL_DIR/checkpoints/<step>`;
      local or `gs://`. Layers that lie scanned in the checkpoint and separate in the model, or the other way round, are
      converted.
    model_config: the model that is to have them.
    abstract_params: its nested dict of `jax.ShapeDtypeStruct` with shardings.

  Returns:
    The nested dict of arrays, laid out by those shardings.

  Raises:
    ConfigError: nothing that can be read is there, or parameters have other names or shapes (the first are named).
    CheckpointError: the checkpoint is damaged.
  """
  if own := _own_step(path):
    return _read_own(*own, model_config, abstract_params)
  folder = epath.Path(path)
  what = describe_folder(p.name for p in folder.iterdir()) if folder.is_dir() else 'there is no such folder'
  raise ConfigError(
    f'RunConfig.initial_checkpoint_path is {path!r}, and {what}; it must be a MODEL_DIR of switch_jax that has a '
    'complete checkpoint, or MODEL_DIR/checkpoints/<step>.'
  )


def place(params: Any, abstract_params: Any) -> Any:
  """Lays out host arrays on the mesh; every host has the whole arrays and gives its devices their parts.

  Args:
    params: nested dict of numpy arrays.
    abstract_params: the same dict of `jax.ShapeDtypeStruct` with shardings.
  """
  put = lambda array, leaf: jax.make_array_from_callback(  # noqa: E731
    leaf.shape, leaf.sharding, lambda index: np.asarray(array[index], leaf.dtype)
  )
  return jax.tree.map(put, params, abstract_params)


def _own_step(path: str) -> tuple[CheckpointStore, int] | None:
  """Returns the checkpoints of a MODEL_DIR and the step that a path means, or None for what is none of ours."""
  folder = epath.Path(path)
  if folder.parent.name == 'checkpoints' and folder.name.isdecimal():
    store = CheckpointStore(folder.parent.parent)
    if folder.is_dir() and int(folder.name) not in (steps := store.steps()):
      raise CheckpointError(
        f'RunConfig.initial_checkpoint_path is {path!r}, which is no complete checkpoint; complete steps beside it: '
        f'{", ".join(map(str, steps)) or "none"}.'
      )
    return (store, int(folder.name)) if folder.is_dir() else None
  store = CheckpointStore(folder)
  step = store.latest_step()
  return None if step is None else (store, step)


def _read_own(store: CheckpointStore, step: int, model_config: ModelConfig, abstract_params: Any) -> Any:
  scanned = store.read_config(step).get('model', {}).get('scan_layers', model_config.scan_layers)
  if scanned == model_config.scan_layers:
    return store.restore_params(step, abstract_params)
  there, here = (stack_layers, separate_layers) if scanned else (separate_layers, stack_layers)
  as_saved = jax.eval_shape(lambda params: there(params, model_config), abstract_params)
  return place(here(store.restore_params(step, as_saved), model_config), abstract_params)
