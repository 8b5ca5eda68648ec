"""`load`: every format by its name, whole, under the caller's overrides."""

import dataclasses

import numpy as np
import pytest

from switch_jax import interop
from switch_jax.config import ConfigError
from tests.interop.own_checkpoints import ATTENTION, assert_same, save_own


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('experts', ATTENTION)
def test_our_own_with_experts_in_attention(tmp_path, experts, scan):
  config = dataclasses.replace(ATTENTION[experts], scan_layers=scan)
  state = save_own(tmp_path, config, with_optimizer=False)
  found, params = interop.load('switch_jax', tmp_path)
  assert found == config == interop.load_config('switch_jax', tmp_path / 'checkpoints' / '9')
  assert_same(params, state['params'])


def test_overrides_of_our_own(tmp_path):
  save_own(tmp_path, ATTENTION['linear'], with_optimizer=False)
  config, params = interop.load('switch_jax', tmp_path, scan_layers=True, eval_capacity_factor=None)
  assert (config.scan_layers, config.moe.eval_capacity_factor) == (True, None)
  separate = interop.load('switch_jax', tmp_path)[1]
  assert_same(interop.separate_layers(params, config), separate)
  attention = params['encoder']['blocks']['layers_1']['attention']
  assert np.shape(attention['query_key_value']['expert']['query']['kernel'])[0] == 1
  with pytest.raises(ConfigError, match="attention_expert='mlp' contradicts the parameters of "):
    interop.load('switch_jax', tmp_path, attention_expert='mlp')


def test_unknown_formats():
  message = r"format 't5-x' is unknown; known are switch_jax, t5x, huggingface. Did you mean 't5x'"
  with pytest.raises(ConfigError, match=message):
    interop.load('t5-x', '/c')
