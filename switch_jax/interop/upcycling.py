"""Upcycling: a checkpoint as one with experts, or with another number of experts."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from switch_jax.config import ConfigError, ModelConfig, MoeConfig, UpcycleConfig
from switch_jax.config.validation import field_types
from switch_jax.interop import infer_config, stored
from switch_jax.interop.stored import Checkpoint, Index, StoredArray
from switch_jax.model import parameter_shapes

_ROUTER, _BIAS = '/router/router_weights/w/kernel', '/router/expert_bias'
# The output kernels of an expert, in feed-forward networks and in attention.
_MULTIPLIED_BY_GATE = ('/wo/kernel', '/expert/query/kernel', '/expert/key_value/kernel')


def upcycle(checkpoint: Checkpoint, target: ModelConfig, how: UpcycleConfig) -> Checkpoint:
  """Returns a checkpoint with the parameters of `target`, made of those of another model when they are read.

  Each expert of a layer that was dense is the dense network. Of E experts, new expert i is the old i modulo E, so more
  are copies in turn and fewer are the first ones. Everything else is taken as it is; the optimizer's state is not.

  Args:
    checkpoint: the model to begin from.
    target: the model to make, of the same sizes; its dense layers must be dense in the checkpoint.
    how: router weights and scale.

  Raises:
    ConfigError: the target has no experts, or parameters that cannot be made from the checkpoint.
  """
  if target.moe is None:
    raise ConfigError('upcycling makes experts, and the model has none (ModelConfig.moe is None); set moe.')
  maker = _Maker(checkpoint, target.moe, how)
  arrays, problems = {}, []
  for name, shape in parameter_shapes(target).items():
    array = maker.make(name, shape)
    if array is None or array.shape != shape:
      problems.append(f'{name} {shape}' + ('' if array is None else f' (there: {array.shape})'))
    else:
      arrays[name] = array
  if problems:
    raise ConfigError(
      f'{checkpoint.path} has nothing of which these could be made: {stored.enumerate_some(problems, 3)}; apart from '
      'experts and routers both models must have the same parameters, and layers with experts cannot become dense.'
    )
  if unused := set(checkpoint.arrays) - maker.used:
    raise ConfigError(
      f'{checkpoint.path} has parameters that the upcycled model has no place for: {stored.enumerate_some(unused)}.'
    )
  left_out = ('the optimizer state, which does not fit the new experts',) if checkpoint.moments else ()
  return dataclasses.replace(checkpoint, arrays=arrays, moments=None, left_out=(*checkpoint.left_out, *left_out))


class _Maker:
  """Makes the parameters of the new model, one at a time."""

  def __init__(self, checkpoint: Checkpoint, moe: MoeConfig, how: UpcycleConfig):
    self.old, self.moe, self.num_experts, self.how = checkpoint.arrays, moe, moe.num_experts, how
    self.used: set[str] = set()

  def make(self, name: str, shape: tuple[int, ...]) -> StoredArray | None:
    """Returns one parameter, or None if there is nothing to make it of."""
    if name.endswith(_ROUTER):
      return self._router(name, shape)
    if name.endswith(_BIAS):
      old = self._take(name)
      return old if old is not None and old.shape == shape else stored.in_memory(np.zeros(shape, np.float32))
    if '/expert/' in name and name not in self.old:
      return self._copies(self._take(name.replace('/expert/', '/')), name, 1, is_stack=False)
    array = self._take(name)
    if array is not None and '/expert/' in name and len(array.shape) == 3:
      return self._copies(array, name, array.shape[0], is_stack=True)
    return array

  def _take(self, name: str) -> StoredArray | None:
    self.used.add(name)
    return self.old.get(name)

  def _copies(self, array: StoredArray | None, name: str, count: int, is_stack: bool) -> StoredArray | None:
    if array is None:
      return None
    if count == self.num_experts and is_stack:
      return array
    scale = np.float32(1)
    if self.how.compensate_gate and name.endswith(_MULTIPLIED_BY_GATE):
      new = _gates_together(self.moe, self.num_experts)
      # Gates of fewer experts grow by themselves: the softmax is over those that are left.
      scale = np.float32(max(1.0, _gates_together(self.moe, count) / new) if is_stack else 1 / new)

    def fetch(box: Index) -> np.ndarray:
      experts, *matrix = box
      result = np.empty([axis.stop - axis.start for axis in box], np.float32)
      for row, expert in enumerate(range(experts.start, experts.stop)):
        if is_stack:
          old = expert % count
          result[row] = array.read((slice(old, old + 1), *matrix))[0]
        elif row == 0:
          result[row] = array.read(tuple(matrix))
        else:
          result[row] = result[0]
      result *= scale
      return result

    return StoredArray((self.num_experts, *array.shape[-2:]), fetch)

  def _router(self, name: str, shape: tuple[int, ...]) -> StoredArray:
    old = self._take(name)
    rng = np.random.default_rng([self.how.seed, zlib.crc32(name.encode())])
    new = rng.normal(0.0, self.how.router_stddev, shape).astype(np.float32)
    if old is not None:
      if old.shape[0] != shape[0]:
        return old
      columns = np.arange(self.num_experts)
      new[:, columns < old.shape[1]] = 0
      new += old.read()[:, columns % old.shape[1]]
    return stored.in_memory(new)


def _gates_together(moe: MoeConfig, num_experts: int) -> float:
  """Returns the sum of a token's gates where the router prefers none of so many experts."""
  one = 0.5 if moe.router_scores == 'sigmoid' else 1 / num_experts
  if moe.router != 'topk':
    return one
  return moe.gate_scale * (1.0 if moe.normalize_gates else moe.num_selected_experts * one)


def target_config(checkpoint: Checkpoint, fields: Mapping[str, Any]) -> ModelConfig:
  """Returns the model that a checkpoint becomes: its own configuration with the experts that the caller asks for.

  Args:
    checkpoint: the model to begin from.
    fields: of `ModelConfig` and `MoeConfig`, `num_experts` among them.

  Raises:
    ConfigError: `num_experts` is missing, or a field contradicts the checkpoint.
  """
  if 'num_experts' not in fields:
    raise ConfigError('upcycling needs the number of experts; give --gin.num_experts=8 (config.MoeConfig.num_experts).')
  moe_fields = field_types(MoeConfig)
  of_moe = {name: value for name, value in fields.items() if name in moe_fields}
  old = infer_config.model_config(checkpoint, {name: v for name, v in fields.items() if name not in moe_fields})
  moe = dataclasses.replace(old.moe, **of_moe) if old.moe else MoeConfig(**of_moe)
  return dataclasses.replace(old, moe=moe)
