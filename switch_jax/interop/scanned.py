"""Parameters of separate layers (`layers_0`, `layers_1`, ...) and of scanned blocks, one from the other."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from switch_jax.config import ModelConfig
from switch_jax.model.transformer import block_length


def stack_layers(params: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
  """Returns the parameters as a model with `scan_layers` has them.

  Args:
    params: nested dict of numpy arrays (or JAX's, also traced) with `encoder/layers_0`, `encoder/layers_1`, ...
    config: the model.

  Returns:
    The same with `encoder/blocks/layers_0`, ..., where layer i of block b is layer b * period + i of the stack and
    blocks are the first axis of every array.
  """
  result = dict(params)
  for stack in config.stacks:
    period, count = block_length(config, stack), config.num_layers(stack)
    result[stack] = {name: value for name, value in params[stack].items() if not name.startswith('layers_')}
    result[stack]['blocks'] = {
      f'layers_{i}': jax.tree.map(
        lambda *arrays: (np if isinstance(arrays[0], np.ndarray) else jnp).stack(arrays),
        *(params[stack][f'layers_{j}'] for j in range(i, count, period)),
      )
      for i in range(period)
    }
  return result


def separate_layers(params: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
  """Returns what `stack_layers` was given: the parameters of scanned blocks as separate layers."""
  result = dict(params)
  for stack in config.stacks:
    period = block_length(config, stack)
    result[stack] = {name: value for name, value in params[stack].items() if name != 'blocks'}
    for i in range(config.num_layers(stack)):
      block = params[stack]['blocks'][f'layers_{i % period}']
      result[stack][f'layers_{i}'] = jax.tree.map(lambda array, b=i // period: array[b], block)
  return result


_LAYER = re.compile(r'(encoder|decoder)/layers_(\d+)/(.*)')
_BLOCK = re.compile(r'(encoder|decoder)/blocks/layers_(\d+)/(.*)')


def scanned_name(name: str, config: ModelConfig) -> tuple[str, int]:
  """Returns the name of a parameter in a model with `scan_layers`, and its row there; -1 if it is no layer's."""
  match = _LAYER.fullmatch(name)
  if not match:
    return name, -1
  block, place = divmod(int(match[2]), block_length(config, match[1]))
  return f'{match[1]}/blocks/layers_{place}/{match[3]}', block


def scanned_rows(name: str, config: ModelConfig) -> list[str] | None:
  """Returns the names of the layers whose parameters are the rows of a scanned one; None if it is no block's."""
  match = _BLOCK.fullmatch(name)
  if not match:
    return None
  period = block_length(config, match[1])
  layers = range(int(match[2]), config.num_layers(match[1]), period)
  return [f'{match[1]}/layers_{layer}/{match[3]}' for layer in layers]
