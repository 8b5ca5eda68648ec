"""Our own checkpoints, array by array: which step, what fits, what is left out."""

import dataclasses

import numpy as np
import pytest

from switch_jax.checkpoints import CheckpointError, CheckpointStore
from switch_jax.config import CheckpointConfig, ConfigError
from switch_jax.interop import own, stored
from switch_jax.model import parameter_shapes
from tests.interop.own_checkpoints import ATTENTION, MODELS, save_own


def save(folder, step, config, params, **record):
  store = CheckpointStore(folder, CheckpointConfig())
  store.save(step, {'step': np.int32(step), 'params': params}, {'model': config.to_json(), **record})
  store.close()


def zeros(config):
  return stored.nest({name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(config).items()})


def test_every_parameter_has_its_moments(tmp_path):
  save_own(tmp_path, dataclasses.replace(ATTENTION['linear'], scan_layers=True))
  checkpoint = own.open_checkpoint(str(tmp_path))
  assert (checkpoint.step, checkpoint.left_out) == (9, ())
  assert checkpoint.shapes() == parameter_shapes(ATTENTION['linear'])
  assert checkpoint.moments.keys() == checkpoint.arrays.keys()
  assert own.record(str(tmp_path))['vocabulary'] == {'size': 11}


def test_the_newest_step_or_the_one_that_is_named(tmp_path):
  for step in (3, 7):
    save(tmp_path, step, MODELS['dense'], zeros(MODELS['dense']))
  assert own.find_step(str(tmp_path))[1] == 7
  assert own.find_step(str(tmp_path / 'checkpoints' / '3'))[1] == 3
  assert own.find_step(str(tmp_path / 'elsewhere')) is None
  (tmp_path / 'checkpoints' / '5').mkdir()
  with pytest.raises(CheckpointError, match='is no complete checkpoint; complete steps beside it: 3, 7'):
    own.find_step(str(tmp_path / 'checkpoints' / '5'))


def test_parameters_of_another_model_are_named(tmp_path):
  config = dataclasses.replace(ATTENTION['linear'], moe=dataclasses.replace(ATTENTION['linear'].moe, num_experts=4))
  save(tmp_path, 1, config, zeros(ATTENTION['linear']))
  with pytest.raises(ConfigError, match=r'decoder/layers_1/mlp/expert/wi/kernel.* do not fit the model of its config'):
    own.open_checkpoint(str(tmp_path))


def test_two_routers_in_attention_are_of_an_early_version(tmp_path):
  params = zeros(ATTENTION['linear'])
  layer = params['encoder']['layers_1']['attention'].pop('query_key_value')
  params['encoder']['layers_1']['attention'] |= {'query': layer, 'key_value': layer}
  save(tmp_path, 1, ATTENTION['linear'], params)
  with pytest.raises(ConfigError, match=r'checkpoints/1 has two routers in Switch attention, .*train anew\.'):
    own.open_checkpoint(str(tmp_path))


def test_the_state_of_adamw_is_left_out(tmp_path):
  save(tmp_path, 1, MODELS['dense'], zeros(MODELS['dense']), run={'optimizer': {'name': 'adamw'}})
  checkpoint = own.open_checkpoint(str(tmp_path))
  assert checkpoint.moments is None
  assert checkpoint.left_out == ('the state of AdamW, for which only our own format has a place',)


def test_blocks_and_layers_become_each_other():
  config = dataclasses.replace(MODELS['base'], scan_layers=True)
  name = 'decoder/{}/mlp/expert/wi/kernel'
  layers = {name.format(f'layers_{i}'): stored.in_memory(np.full((3, 10, 7), i, np.float32)) for i in (1, 3)}
  blocks = own.together(layers, config)
  assert blocks[name.format('blocks/layers_1')].shape == (2, 3, 10, 7)
  again = own.separate(blocks, config)
  assert again.keys() == layers.keys()
  for i in (1, 3):
    assert np.unique(again[name.format(f'layers_{i}')].read((slice(0, 2), slice(3, 9)))) == i
