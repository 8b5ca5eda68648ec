"""`load`: a checkpoint as this package's configuration and parameters."""

import dataclasses
import os
from typing import Any

import numpy as np

from switch_jax.config import ConfigError, ModelConfig, suggest
from switch_jax.interop import huggingface, infer_config, own, stored, t5x
from switch_jax.interop.scanned import stack_layers
from switch_jax.interop.stored import Checkpoint, Index, StoredArray

FORMATS = {
  'switch_jax': own.open_checkpoint,
  't5x': t5x.open_checkpoint,
  'huggingface': huggingface.open_checkpoint,
}


def load(format: str, path: str, **overrides: Any) -> tuple[ModelConfig, dict[str, Any]]:
  """Loads a checkpoint, whole, into memory.

  Checkpoints record little beside arrays. Layers, widths, heads, experts, gated or not and tied or not follow from
  their shapes. T5X checkpoints say nothing else; what shapes do not tell takes the values of the released
  Switch-Base and Large, XXL (gated, untied) or C (experts in every layer, untied): capacity factors, rounding and
  minimum, padding that takes slots, no jitter, ReLU for a single `wi`. One group per shard is routed together unless
  `sequences_per_group` is given. Hugging Face's config.json adds its settings; there a sequence is a group, with the
  fixed `expert_capacity`, in evaluation too; of a Llama or Mixtral it says everything, and nothing is dropped.

  Args:
    format: `t5x` (native or Orbax), `huggingface` (safetensors), or `switch_jax`, our own.
    path: the folder; for `t5x` also the index file in it, and `gs://...`; our own is a MODEL_DIR, of which the newest
      step is read, or `MODEL_DIR/checkpoints/<step>`.
    **overrides: fields of `ModelConfig` and `MoeConfig` that win over the above, except where shapes contradict them.

  Returns:
    The configuration, and its parameters: a nested dict under T5X's names, float32 numpy arrays, stacked by block
    where `scan_layers=True` is given.

  Raises:
    ConfigError: an unknown format or override; no such folder, another format, a damaged or incomplete file; missing,
      unknown or contradictory parameters; values that are not float32, bfloat16 or float16, or NaN or infinite.
  """
  checkpoint = open_checkpoint(format, path)
  config = infer_config.model_config(checkpoint, overrides)
  params = stored.nest({name: array.read() for name, array in checkpoint.arrays.items()})
  return config, stack_layers(params, config) if config.scan_layers else params


def load_config(format: str, path: str, **overrides: Any) -> ModelConfig:
  """Returns the configuration that `load` would; reads no array, so it is quick for a checkpoint of any size."""
  return infer_config.model_config(open_checkpoint(format, path), overrides)


def open_checkpoint(format: str, path: str) -> Checkpoint:
  """Opens a checkpoint: shapes are known, values are read on demand. Raises a `ConfigError` as `load` does."""
  if format not in FORMATS:
    raise ConfigError(f'the format {format!r} is unknown; known are {", ".join(FORMATS)}.{suggest(format, FORMATS)}')
  checkpoint = FORMATS[format](os.fspath(path))
  finite = lambda name, array: _finite(checkpoint.path, name, array)  # noqa: E731
  moments = checkpoint.moments and {
    name: {slot: finite(f'{name} ({slot})', array) for slot, array in slots.items()}
    for name, slots in checkpoint.moments.items()
  }
  arrays = {name: finite(name, array) for name, array in checkpoint.arrays.items()}
  return dataclasses.replace(checkpoint, arrays=arrays, moments=moments)


def _finite(path: str, name: str, array: StoredArray) -> StoredArray:
  """Returns an array that raises a `ConfigError` where values are read that are no numbers."""

  def fetch(box: Index) -> np.ndarray:
    values = array.read(box)
    finite = np.isfinite(values)
    if not finite.all():
      first = np.argwhere(~finite)[0]
      index = [int(i) + axis.start for i, axis in zip(first, box, strict=True)]
      raise ConfigError(
        f'{name} of {path} is {values[tuple(first)]} at {index} (NaN or infinite: {values.size - finite.sum()} of the '
        f'{values.size} values read); no model computes anything with it. Take an earlier checkpoint, or copy this one '
        'again if the original is sound.'
      )
    return values

  return dataclasses.replace(array, fetch=fetch)
