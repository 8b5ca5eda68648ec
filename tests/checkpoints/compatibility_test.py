"""What does not fit is named, with both values; see `store_test.py` for the same through real checkpoints."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import switch_jax
from switch_jax.checkpoints.compatibility import check_settings, check_shapes, check_version
from switch_jax.config import ConfigError, ModelConfig

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


def test_two_routers_in_attention_are_named():
  saved = {'params': {'self_attention': {'key_value': {'router': {'w': np.zeros(2)}}}}}
  with pytest.raises(
    ConfigError, match=r'run has two routers in Switch attention, .* this one has one for all of them'
  ):
    check_shapes(PATH, saved, shapes(w=(2,)))


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


MODEL = ModelConfig(
  vocab_size=8, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1
).to_json()


def said_of(caplog, place, record):
  """Returns what is logged of a config.json that is read twice."""
  caplog.clear()
  with caplog.at_level(logging.WARNING):
    for _ in range(2):
      check_version(epath.Path(place), record)
  return [record.message for record in caplog.records]


def test_versions_and_settings_that_are_known_say_nothing(caplog):
  known = {
    'version': switch_jax.__version__,
    'model': MODEL,
    'run': {'train_steps': 3},
    'identity': {'model.emb_dim': 8},
  }
  for record in (known, known | {'version': '0.0.1'}, {}, {'model': None}):
    assert said_of(caplog, 'a', record) == []


def test_a_newer_version_is_said_once_in_one_line(caplog):
  said = said_of(caplog, 'b', {'version': '99.1', 'model': MODEL})
  ours = switch_jax.__version__
  assert said == [f'b was written by switch_jax 99.1, which is newer, this is {ours}; all its settings are known.']


def test_unknown_settings_are_named(caplog):
  record = {
    'version': '99.1',
    'run': {'new': 1, 'data': {'old': 2}},
    'identity': {'model.moe.odd': 1, 'model.emb_dim': 8},
  }
  (said,) = said_of(caplog, 'c', record)
  assert said.endswith(
    'settings that this version does not know are ignored (run: new, data.old, identity: model.moe.odd).'
  )


def test_unknown_fields_of_the_model_are_an_error():
  record = {'version': '99.1', 'model': MODEL | {'rope': True, 'moe': {'num_experts': 2, 'fourth_choice': 1}}}
  with pytest.raises(
    ConfigError, match=r'd was written by switch_jax 99\.1, this is .*not know: moe\.fourth_choice, rope'
  ):
    check_version(epath.Path('d'), record | {'model': dict(sorted(record['model'].items()))})


def test_sections_that_are_none():
  with pytest.raises(ConfigError, match='e records 5 as its model, which must be a JSON object'):
    check_version(epath.Path('e'), {'model': 5})
