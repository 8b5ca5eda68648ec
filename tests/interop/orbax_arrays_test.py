"""Trees that Orbax wrote, array by array: T5X's newer format."""

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from switch_jax import interop
from switch_jax.config import ConfigError
from switch_jax.interop import orbax_arrays
from switch_jax.interop.stored import nest
from tests.interop.own_checkpoints import refused, run


def write_orbax(folder, params, state):
  """Writes a checkpoint as T5X does through Orbax."""
  tree = {'target': nest(params), 'state': {'step': np.int32(41), 'param_states': nest(state)}}
  with ocp.PyTreeCheckpointer() as writer:
    writer.save(folder / 'state', tree)
  return folder


def test_t5x_through_orbax(tmp_path, sparse_model, random_params, flatten):
  params = random_params(sparse_model)
  state = {f'{name}/v': np.abs(array) for name, array in params.items()}
  folder = write_orbax(tmp_path / 'checkpoint_41', params, state)
  _, loaded = interop.load('t5x', folder)
  flat = flatten(loaded)
  assert flat.keys() == params.keys()
  assert all(np.array_equal(flat[name], params[name]) for name in params)
  assert interop.load_optimizer_state(folder)['step'] == 41
  assert run(f't5x:{folder}', f't5x:{tmp_path}/native') == 0
  copy = interop.load_optimizer_state(tmp_path / 'native')
  np.testing.assert_array_equal(
    copy['param_states']['token_embedder']['embedding']['v'], np.abs(params['token_embedder/embedding'])
  )


def test_t5x_through_orbax_of_another_type(tmp_path, sparse_model, random_params, capsys):
  params = {name: array.astype(np.int8) for name, array in random_params(sparse_model).items()}
  folder = write_orbax(tmp_path / 'checkpoint_41', params, {})
  refused(capsys, tmp_path, f't5x:{folder}', f't5x:{tmp_path}/out', 'is stored as |i1')


def test_boxes_and_what_is_no_tree(tmp_path):
  matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
  half = matrix.astype(ml_dtypes.bfloat16)
  with ocp.PyTreeCheckpointer() as writer:
    writer.save(tmp_path / 'tree', {'a': {'b': matrix, 'zeros': np.zeros_like(matrix)}, 'half': half})
  assert orbax_arrays.is_folder(str(tmp_path / 'tree'))
  assert not orbax_arrays.is_folder(str(tmp_path))
  arrays = orbax_arrays.open_arrays(str(tmp_path / 'tree'))
  assert {name: array.shape for name, array in arrays.items()} == dict.fromkeys(('a.b', 'a.zeros', 'half'), (3, 4))
  np.testing.assert_array_equal(arrays['a.b'].read((slice(1, 3), slice(0, 2))), matrix[1:, :2])
  np.testing.assert_array_equal(arrays['a.zeros'].read(), 0)
  np.testing.assert_array_equal(arrays['half'].read(), matrix, strict=True)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ConfigError, match='holds no arrays; the copy is incomplete'):
    orbax_arrays.open_arrays(str(tmp_path / 'empty'))
