"""T5X checkpoints of scanned layers as separate layers.

flaxformer scans over blocks of layers, `encoder/encoder/subblock_0`, `subblock_1`, ...: block b's array is row b of
the *second* axis of what is stored. There each layer has a table of relative positions; a model here has one for each
stack, as all released models, so such a checkpoint can be read only where the tables of a stack are equal.
"""

import re
from collections.abc import Mapping

import numpy as np

from switch_jax.config import ConfigError
from switch_jax.interop import stored
from switch_jax.interop.stored import StoredArray

# More are damage, and would be as many arrays.
_MAX_BLOCKS = 1000
_SCANNED = re.compile(r'(encoder/encoder|decoder/decoder)/(?:subblock_(\d+)/)?(.*)')


def is_scanned(arrays: Mapping[str, StoredArray]) -> bool:
  """Whether names are those of scanned layers."""
  return any(_SCANNED.match(name) for name in arrays)


def separate_layers(path: str, arrays: Mapping[str, StoredArray]) -> dict[str, StoredArray]:
  """Returns the arrays under the names that separate layers have.

  Raises:
    ConfigError: numbers of blocks contradict each other, or the layers of a stack have different tables of relative
      positions.
  """
  matches = {name: match for name in arrays if (match := _SCANNED.match(name))}
  result = {name: array for name, array in arrays.items() if name not in matches}
  for stack in ('encoder', 'decoder'):
    mine = {name: match for name, match in matches.items() if match[1].startswith(stack)}
    counts = {arrays[name].shape[1] if len(arrays[name].shape) > 1 else None for name in mine}
    if len(counts) > 1 or None in counts:
      raise ConfigError(
        f'{path} has scanned layers whose second axis, the blocks of the {stack}, has the sizes '
        f'{sorted(map(str, counts))}; it must be the same everywhere.'
      )
    blocks = max(counts, default=0)
    if blocks > _MAX_BLOCKS:
      raise ConfigError(f'{path} has {blocks} blocks in the {stack}; a model has at most {_MAX_BLOCKS}. It is damaged.')
    period = max((int(match[2] or 0) for match in mine.values()), default=0) + 1
    tables = []
    for name, match in mine.items():
      for block in range(arrays[name].shape[1]):
        layer = _row(arrays[name], block)
        if match[3] == 'relpos_bias/rel_embedding':
          tables.append(layer)
        else:
          result[f'{stack}/layers_{block * period + int(match[2] or 0)}/{match[3]}'] = layer
    if tables:
      first = tables[0].read()
      if not all(np.array_equal(first, table.read()) for table in tables[1:]):
        raise ConfigError(
          f'{path} was trained with scanned layers, each with a table of relative positions of its own '
          f'({len(tables)} different ones in the {stack}); a model here has one table for a stack, as the released '
          'models have, so this one cannot be represented.'
        )
      result[f'{stack}/relpos_bias/rel_embedding'] = stored.in_memory(first)
  return result


def _row(array: StoredArray, block: int) -> StoredArray:
  """Returns one block's part of an array: a row of its second axis."""
  shape = (array.shape[0], *array.shape[2:])
  fetch = lambda box: array.read((box[0], slice(block, block + 1), *box[1:]))[:, 0]  # noqa: E731
  return StoredArray(shape, fetch, array.chunk_rows)
