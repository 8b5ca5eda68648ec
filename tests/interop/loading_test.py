"""`load`: every format by its name, whole, under the caller's overrides."""

import dataclasses

import numpy as np
import pytest

from switch_jax import convert, interop
from switch_jax.config import ConfigError
from switch_jax.interop import loading
from switch_jax.interop.initial import initial_parameters
from switch_jax.model import abstract_parameters
from switch_jax.parallel import Layout
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


@pytest.mark.parametrize('value', [np.nan, -np.inf])
def test_values_that_are_no_numbers(tmp_path, sparse_model, random_params, write_t5x, write_huggingface, value):
  params = random_params(sparse_model)
  name = 'decoder/layers_1/mlp/expert/wi/kernel'
  params[name][2, 3, 4] = value
  write_t5x(tmp_path / 't5x', params)
  write_huggingface(tmp_path / 'huggingface', params, sparse_model)
  for format in ('t5x', 'huggingface'):
    path = tmp_path / format
    with pytest.raises(ConfigError) as caught:
      interop.load(format, path)
    assert str(caught.value) == (
      f'{name} of {path} is {value} at [2, 3, 4] (NaN or infinite: 1 of the 210 values read); no model computes '
      'anything with it. Take an earlier checkpoint, or copy this one again if the original is sound.'
    )
    with pytest.raises(ConfigError, match=rf'^{name} of .* \[2, 3, 4\]'):
      initial_parameters(f'{format}:{path}', interop.load_config(format, path), abstract(sparse_model))
    assert convert.main([f'--from={format}:{path}', f'--to=switch_jax:{tmp_path}/out']) == 1
    assert not (tmp_path / 'out').exists()


def test_moments_that_are_no_numbers(tmp_path, sparse_model, random_params, write_t5x):
  params = random_params(sparse_model)
  state = {f'{name}/v': array**2 for name, array in params.items()}
  state['encoder/encoder_norm/scale/v'][7] = np.inf
  moments = loading.open_checkpoint('t5x', str(write_t5x(tmp_path / 'c', params, state=state))).moments
  np.testing.assert_array_equal(
    moments['decoder/decoder_norm/scale']['v'].read(), state['decoder/decoder_norm/scale/v']
  )
  with pytest.raises(ConfigError, match=r'^encoder/encoder_norm/scale \(v\) of .* is inf at \[7\]'):
    moments['encoder/encoder_norm/scale']['v'].read()


def abstract(config):
  return abstract_parameters(config, Layout.single_device())
