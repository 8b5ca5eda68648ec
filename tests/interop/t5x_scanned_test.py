"""flaxformer's scanned layers as separate ones."""

import numpy as np
import pytest

from switch_jax import interop
from switch_jax.config import ConfigError
from switch_jax.interop import t5x_scanned
from switch_jax.interop.stored import in_memory


def scanned(params, config, tables_differ=False):
  """Returns parameters as flaxformer's scan has them: blocks on the second axis, a table in every layer."""
  result = {}
  for name, array in params.items():
    stack, _, rest = name.partition('/')
    if rest.startswith('layers_') or rest == 'relpos_bias/rel_embedding':
      continue
    result[name] = array
  for stack in ('encoder', 'decoder'):
    count = config.num_layers(stack)
    for place in range(2):
      layers = range(place, count, 2)
      for name in params:
        prefix = f'{stack}/layers_{place}/'
        if name.startswith(prefix):
          rest = name.removeprefix(prefix)
          parts = [params[f'{stack}/layers_{i}/{rest}'] for i in layers]
          result[f'{stack}/{stack}/subblock_{place}/{rest}'] = np.stack(parts, axis=1)
      table = params[f'{stack}/relpos_bias/rel_embedding']
      tables = [table + np.float32(tables_differ) * i for i in layers]
      result[f'{stack}/{stack}/subblock_{place}/relpos_bias/rel_embedding'] = np.stack(tables, axis=1)
  return result


def test_t5x_scanned(tmp_path, sparse_model, random_params, write_t5x, flatten):
  params = random_params(sparse_model)
  folder = write_t5x(tmp_path / 'c', scanned(params, sparse_model))
  _, loaded = interop.load('t5x', folder)
  flat = flatten(loaded)
  assert flat.keys() == params.keys()
  for name in params:
    np.testing.assert_array_equal(flat[name], params[name], err_msg=name)
  differing = write_t5x(tmp_path / 'd', scanned(params, sparse_model, tables_differ=True))
  with pytest.raises(ConfigError, match='each with a table of relative positions of its own'):
    interop.load('t5x', differing)


def test_layers_of_different_numbers_of_blocks_are_refused():
  arrays = {
    'encoder/encoder/subblock_0/mlp/wi/kernel': in_memory(np.zeros((4, 2, 6))),
    'encoder/encoder/subblock_1/mlp/wi/kernel': in_memory(np.zeros((4, 3, 6))),
  }
  assert t5x_scanned.is_scanned(arrays)
  assert not t5x_scanned.is_scanned({'encoder/layers_0/mlp/wi/kernel': None})
  with pytest.raises(ConfigError, match=r"the blocks of the encoder, has the sizes \['2', '3'\]"):
    t5x_scanned.separate_layers('/c', arrays)
