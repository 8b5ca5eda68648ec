"""What does not fit is named, with both values; see `store_test.py` for the same through real checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from switch_jax.checkpoints.compatibility import check_settings, check_shapes
from switch_jax.config import ConfigError

PATH = epath.Path('run')


def shapes(**sizes):
  """Returns a tree of arrays that are not there."""
  return {'params': {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in sizes.items()}}


def test_containers_do_not_matter():
  check_shapes(PATH, {'opt': {'0': np.zeros(3), '1': {}}}, {'opt': [jax.ShapeDtypeStruct((3,), jnp.int8), ()]})


def test_parameters_come_first_and_five_are_enough():
  saved = {'aux': np.zeros(2)} | shapes(**{f'w{i}': (i,) for i in range(6)})
  with pytest.raises(ConfigError) as error:
    check_shapes(PATH, saved, shapes(w0=(0,)))
  lines = str(error.value).splitlines()
  assert lines[0] == 'run does not fit this model:'
  assert lines[1] == '  params/w1: (1,) in the checkpoint, not in this configuration'
  assert [line.split(':')[0].strip() for line in lines[1:6]] == [f'params/w{i}' for i in range(1, 6)]
  assert lines[6] == '  and 1 more'


def test_only_what_is_below_a_path_is_compared():
  saved = {'opt': np.zeros(2)} | shapes(w=(1,))
  check_shapes(PATH, saved, shapes(w=(1,)), below='params/')
  with pytest.raises(ConfigError, match='params/w:'):
    check_shapes(PATH, saved, shapes(w=(2,)), below='params/')


@pytest.mark.parametrize(
  ('saved', 'given', 'line'),
  [
    ({'a': 1}, {'a': 2}, '  a  1 in the checkpoint, 2 now'),
    ({'a': 1}, {'a': True}, '  a  1 in the checkpoint, True now'),
    ({'a': 1, 'long': 'x'}, {'a': 1}, "  long  'x' in the checkpoint, not set now"),
    ({}, {'a': None}, '  a  not set in the checkpoint, None now'),
  ],
)
def test_settings_that_differ(saved, given, line):
  check_settings(PATH, 3, given, given)
  with pytest.raises(ConfigError) as error:
    check_settings(PATH, 3, saved, given)
  assert str(error.value).splitlines()[:2] == ['run holds a run with other settings (checkpoint of step 3):', line]


def test_tuples_are_the_lists_of_json():
  check_settings(PATH, 3, {'layers': [1, 3]}, {'layers': (1, 3)})
