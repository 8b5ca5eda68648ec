"""A trained model read from a MODEL_DIR: its configuration from `config.json`, its parameters onto a mesh."""

import dataclasses
import os
from typing import Any

import jax
from etils import epath

from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import ConfigError, MeshConfig, ModelConfig
from switch_jax.folders.model_dir import STATE
from switch_jax.folders.remote import is_remote
from switch_jax.interop.orbax_arrays import open_arrays
from switch_jax.model import abstract_parameters, parameter_widths
from switch_jax.model.parameters import Parameters
from switch_jax.parallel import Layout, make_mesh


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A checkpoint, ready to be used.

  Attributes:
    config: the model's configuration.
    layout: the mesh that the parameters lie on.
    params: nested dict of float32 arrays.
    step: of the checkpoint.
    record: the checkpoint's `config.json`.
  """

  config: ModelConfig
  layout: Layout
  params: Parameters
  step: int
  record: dict[str, Any]


def make_inference_layout(config: ModelConfig, mesh: MeshConfig) -> Layout:
  """Returns the layout of a model over all devices.

  Raises:
    ConfigError: the model does not divide over the mesh.
  """
  num_experts = config.moe.num_experts if config.moe else None
  return Layout.of(mesh, make_mesh(mesh, num_experts, widths=parameter_widths(config)))


def check_batch_size(batch_size: int, layout: Layout, owner: str) -> None:
  """Raises a `ConfigError` unless the rows of a batch divide over the mesh."""
  if batch_size % layout.num_token_shards:
    raise ConfigError(
      f'{owner}.batch_size is {batch_size}, which the {layout.num_token_shards} (data, expert) shards of the mesh do '
      f'not divide; use a multiple of {layout.num_token_shards}.'
    )


def open_store(model_dir: str | os.PathLike[str]) -> CheckpointStore:
  """Opens the checkpoints of a MODEL_DIR for reading.

  Raises:
    ConfigError: there is no such folder.
  """
  store = CheckpointStore(model_dir)
  if not epath.Path(store.model_dir).is_dir():
    raise ConfigError(f'MODEL_DIR is {os.fspath(model_dir)!r}, and there is no such folder; name that of a run.')
  return store


def latest_step(store: CheckpointStore) -> int:
  """Returns the newest step that is not damaged; one that is, is said.

  Raises:
    ConfigError: there is no checkpoint, or (`CheckpointError`) all are damaged.
  """
  step = store.latest_whole_step()
  if step is None:
    raise ConfigError(f'{store.directory} holds no complete checkpoint; train first, or set MODEL_DIR to another run.')
  return step


def load_model(store: CheckpointStore, step: int, mesh: MeshConfig) -> LoadedModel:
  """Reads a checkpoint, whatever mesh it was written on.

  Raises:
    ConfigError: there is no such step, it is damaged, or it does not divide over the mesh.
  """
  record = store.read_config(step)
  if 'model' not in record:
    raise ConfigError(f'config.json of {store.path(step)} does not say which model it is; it cannot be loaded.')
  config = ModelConfig.from_json(record['model'])
  layout = make_inference_layout(config, mesh)
  store.check_files(step)
  if not is_remote(store.model_dir):
    # A MODEL_DIR may come from anywhere, and Orbax believes what the arrays' descriptions say: one that asks for more
    # memory than there is would end the process.
    open_arrays(str(store.path(step) / STATE))
  params = store.restore_params(step, abstract_parameters(config, layout))
  return LoadedModel(config, layout, jax.block_until_ready(params), step, record)
