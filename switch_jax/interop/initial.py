"""Parameters that a run begins with: those of a checkpoint, laid out for this run's model and mesh."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from switch_jax import data
from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import ConfigError, ModelConfig, UpcycleConfig
from switch_jax.folders.model_dir import CHECKPOINTS, FILES
from switch_jax.interop import hub, huggingface_tokenizer, infer_config, loading, upcycling
from switch_jax.interop.own import find_step, model_of, open_arrays, together
from switch_jax.interop.scanned import separate_layers, stack_layers
from switch_jax.interop.stored import Checkpoint, StoredArray, describe_folder, nest
from switch_jax.model import parameter_shapes

_FORMATS = ('switch_jax', 't5x', 'huggingface')
_SETTING = 'RunConfig.initial_checkpoint_path'
# What changes the function that parameters compute, and is recorded by some formats.
_RECORDED = ('mlp_activations', 'layer_norm_epsilon', 'relpos_max_distance', 'logits_via_embedding', 'rotary_base')


@dataclasses.dataclass(frozen=True)
class CheckpointFacts:
  """What is known of a checkpoint before any array is read.

  Attributes:
    path: of exactly this checkpoint, also where the newest of several was asked for.
    model: its configuration, recorded or inferred from shapes, layers as they lie in a checkpoint of ours.
    step: of a checkpoint of ours or of T5X; None where nothing says it.
    vocabulary: what a checkpoint of ours records of its vocabulary; None for those of others.
    record: config.json of a checkpoint of ours; empty for those of others.
  """

  path: str
  model: ModelConfig
  step: int | None
  vocabulary: dict[str, Any] | None
  record: dict[str, Any]


def describe_checkpoint(path: str, setting: str) -> CheckpointFacts:
  """Returns what a checkpoint of any format is, without reading its parameters.

  Args:
    path: as for `initial_parameters`.
    setting: the field that names it, for errors.

  Raises:
    ConfigError: nothing that can be read is there.
    CheckpointError: the checkpoint is damaged.
  """
  format, place = _split(path)
  if format in (None, 'switch_jax') and (found := find_step(place, setting)):
    store, step = found
    record = store.read_config(step)
    if isinstance(record.get('model'), dict):
      model = model_of(store, step, record)
      return CheckpointFacts(str(store.path(step)), model, step, record.get('vocabulary'), record)
  checkpoint = loading.open_checkpoint(format or _detect(place, setting), place)
  return CheckpointFacts(path, infer_config.model_config(checkpoint, {}), checkpoint.step, None, {})


def stored_parameters(path: str, setting: str) -> Mapping[str, StoredArray]:
  """Opens the parameters of a checkpoint of any format, by T5X name, layers one by one; each is read on demand.

  Args:
    path: as for `initial_parameters`.
    setting: the field that names it, for errors.

  Raises:
    ConfigError: nothing that can be read is there.
    CheckpointError: the checkpoint is damaged.
  """
  format, place = _split(path)
  if format in (None, 'switch_jax') and (found := find_step(place, setting)):
    return open_arrays(*found)[2]
  return loading.open_checkpoint(format or _detect(place, setting), place).arrays


def initial_parameters(
  path: str,
  model_config: ModelConfig,
  abstract_params: Any,
  upcycle: UpcycleConfig | None = None,
  setting: str = _SETTING,
) -> Any:
  """Reads the parameters of a checkpoint, and nothing else of it.

  Args:
    path: a MODEL_DIR of switch_jax (its newest step is read), or one of its steps, `MODEL_DIR/checkpoints/<step>`; a
      T5X checkpoint; or a Hugging Face folder; local or (not Hugging Face) `gs://`. What it is is seen from its files,
      or said before the path, as `t5x:/some/checkpoint_500100`. Layers that lie scanned in the checkpoint and separate
      in the model, or the other way round, are converted.
    model_config: the model that is to have them.
    abstract_params: its nested dict of `jax.ShapeDtypeStruct` with shardings.
    upcycle: make the experts that the checkpoint lacks.
    setting: the field that names it, for errors.

  Returns:
    The nested dict of arrays, laid out by those shardings. Each host reads what its devices hold.

  Raises:
    ConfigError: nothing that can be read is there, or parameters have other names or shapes (the first are named).
    CheckpointError: the checkpoint is damaged.
  """
  format, path = _split(path)
  if format in (None, 'switch_jax') and upcycle is None and (found := find_step(path, setting)):
    return _read_own(*found, model_config, abstract_params)
  checkpoint = loading.open_checkpoint(format or _detect(path, setting), path)
  if upcycle is not None:
    checkpoint = upcycling.upcycle(checkpoint, model_config, upcycle)
  _check(checkpoint, model_config)
  arrays = dict(checkpoint.arrays)
  if model_config.scan_layers:
    arrays = together(arrays, model_config)
  return jax.tree.map(_read_onto_mesh, nest(arrays), abstract_params)


def recorded_vocabulary(path: str) -> dict[str, Any] | None:
  """Returns what a checkpoint says of its vocabulary, as ours record it; None where nothing says it for certain.

  Args:
    path: as for `initial_parameters`.
  """
  record, _ = _vocabulary(path)
  # Two tokenizers of ByT5 differ in their sentinels, and a folder does not say which one the model was trained with.
  return None if record and record['name'] == 'byt5' else record


def inherited_vocabulary(path: str) -> str | None:
  """Returns the name of the vocabulary that a checkpoint was trained with, or the path of its copy.

  Args:
    path: as for `initial_parameters`; of checkpoints that do not say it, as T5X's, the answer is None.
  """
  return _vocabulary(path)[1]


def _vocabulary(path: str) -> tuple[dict[str, Any] | None, str | None]:
  """Returns what is known of a checkpoint's vocabulary, and the name that gives it."""
  format, place = _split(path)
  model_dir = None
  if format in (None, 'switch_jax') and (found := find_step(place, _SETTING)):
    record, model_dir = found[0].read_config(found[1]).get('vocabulary'), found[0].model_dir
  elif (format or _detect(place, _SETTING)) == 'huggingface':
    record = huggingface_tokenizer.read_vocabulary(hub.local_folder(place))[0]
  else:
    record = None
  return record, data.recorded_name(record, model_dir) if record else None


def _split(path: str) -> tuple[str | None, str]:
  """Returns the format that stands before a path, or None, and the path."""
  named, _, rest = path.partition(':')
  return (named, rest) if named in _FORMATS and rest else (None, path)


def _detect(path: str, setting: str) -> str:
  """Returns the format of what lies at a path. Raises a `ConfigError` that says what is there if it is none."""
  folder = epath.Path(path)
  there = lambda name: (folder / name).exists()  # noqa: E731
  if there(CHECKPOINTS):
    return 'switch_jax'
  steps_below = folder.is_dir() and any(folder.glob('checkpoint_*'))
  if folder.is_file() or there('checkpoint') or there('state') or steps_below:
    return 't5x'
  if there('config.json') and not there(FILES):
    return 'huggingface'
  what = describe_folder(p.name for p in folder.iterdir()) if folder.is_dir() else 'there is no such folder'
  of_hub = not folder.exists() and hub.is_name(path)
  raise ConfigError(
    f'{setting} is {path!r}, and {what}; it must be a MODEL_DIR of switch_jax that has a '
    'complete checkpoint, MODEL_DIR/checkpoints/<step>, a T5X checkpoint or a Hugging Face folder.'
    + (f' A model of the hub is named huggingface:{path}.' if of_hub else '')
  )


def _check(checkpoint: Checkpoint, config: ModelConfig) -> None:
  """Raises a `ConfigError` unless a checkpoint has exactly a model's parameters, and computes the same with them."""
  found, wanted = checkpoint.shapes(), parameter_shapes(config)
  differ = [
    f'{name}: {found.get(name, "not")} in the checkpoint, {wanted.get(name, "not")} in this configuration'
    for name in sorted({*found, *wanted})
    if found.get(name) != wanted.get(name)
  ]
  if differ:
    dense = config.moe is not None and not any('/expert/' in name for name in found)
    kind = 'Llama' if config.is_decoder_only else 'T5'
    hint = (
      f'The checkpoint is a dense {kind}: set config.RunConfig.upcycle = @config.UpcycleConfig() to make experts of it.'
      if dense
      else 'Use the configuration that the checkpoint was made with, or another checkpoint.'
    )
    more = f' and {len(differ) - 3} more' if len(differ) > 3 else ''
    raise ConfigError(f'{checkpoint.path} does not fit this model: {"; ".join(differ[:3])}{more}. {hint}')
  recorded = dict(checkpoint.recorded) if checkpoint.config is None else vars(checkpoint.config)
  for name in _RECORDED:
    if name in recorded and recorded[name] != getattr(config, name):
      raise ConfigError(
        f'ModelConfig.{name} is {getattr(config, name)!r}, and {checkpoint.path} was trained with {recorded[name]!r}; '
        f'its parameters are of no use otherwise. Set --gin.config.ModelConfig.{name}="{recorded[name]!r}".'
      )


def _read_onto_mesh(array: StoredArray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
  """Reads of a stored array what the devices of this host hold; each part once, however many devices hold it."""
  parts: dict[Any, np.ndarray] = {}

  def read(index):
    key = tuple(part.indices(size) for part, size in zip(index, leaf.shape, strict=True))
    if key not in parts:
      parts[key] = array.read(index).astype(leaf.dtype, copy=False)
    return parts[key]

  return jax.make_array_from_callback(leaf.shape, leaf.sharding, read)


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


def _read_own(store: CheckpointStore, step: int, model_config: ModelConfig, abstract_params: Any) -> Any:
  scanned = (store.read_config(step).get('model') or {}).get('scan_layers', model_config.scan_layers)
  if scanned == model_config.scan_layers:
    return store.restore_params(step, abstract_params)
  there, here = (stack_layers, separate_layers) if scanned else (separate_layers, stack_layers)
  as_saved = jax.eval_shape(lambda params: there(params, model_config), abstract_params)
  return place(here(store.restore_params(step, as_saved), model_config), abstract_params)
