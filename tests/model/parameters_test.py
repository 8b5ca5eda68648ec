"""Names, shapes and logical axes of all parameters are an interface: checkpoints depend on them."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from switch_jax.config import ModelConfig, MoeConfig
from switch_jax.model import (
  abstract_parameters,
  init_parameters,
  parameter_axes,
  parameter_count,
  parameter_shapes,
  parameter_widths,
)
from switch_jax.model.parameters import _traced
from switch_jax.parallel import Layout

GOLDEN = pathlib.Path(__file__).parents[1] / 'fixtures' / 'parameters'

SWITCH = ModelConfig(
  vocab_size=384,
  emb_dim=32,
  num_heads=4,
  head_dim=8,
  mlp_dim=64,
  num_encoder_layers=4,
  num_decoder_layers=4,
  moe=MoeConfig(num_experts=4),
)
MODELS = {
  'switch': SWITCH,
  'switch_scanned': dataclasses.replace(SWITCH, scan_layers=True),
  'geglu_untied_every_layer': dataclasses.replace(
    SWITCH,
    mlp_activations=('gelu', 'linear'),
    logits_via_embedding=False,
    num_encoder_layers=2,
    num_decoder_layers=2,
    moe=MoeConfig(num_experts=4, encoder_layers=1, decoder_layers=1),
  ),
  'switch_attention': dataclasses.replace(
    SWITCH,
    num_encoder_layers=2,
    num_decoder_layers=2,
    moe=MoeConfig(num_experts=4, encoder_attention_layers=(1,), attention_expert='mlp'),
  ),
  'dense': dataclasses.replace(SWITCH, num_encoder_layers=1, num_decoder_layers=1, moe=None),
  'decoder_only': dataclasses.replace(
    SWITCH, num_encoder_layers=0, num_decoder_layers=2, logits_via_embedding=False, prefix_lm=True
  ),
  'decoder_only_rotary': dataclasses.replace(SWITCH, num_encoder_layers=0, num_decoder_layers=2, positions='rotary'),
}


def listing(config):
  """Returns one line for each parameter: its path, shape and logical axes."""
  layout = Layout.single_device()
  axes = parameter_axes(config)
  lines = jax.tree_util.tree_map_with_path(
    lambda path, x, names: f'{"/".join(k.key for k in path)} {x.shape} {names}',
    abstract_parameters(config, layout),
    axes,
  )
  return '\n'.join(jax.tree.leaves(lines)) + '\n'


@pytest.mark.parametrize('name', MODELS)
def test_parameters_are_those_of_the_golden_file(name):
  assert listing(MODELS[name]) == (GOLDEN / f'{name}.txt').read_text()


@pytest.mark.parametrize('name', MODELS)
def test_shapes_are_those_of_separate_layers(name):
  """Whether or not the model scans them; each call gives a dict of the caller's own."""
  scanned = dataclasses.replace(MODELS[name], scan_layers=True)
  shapes, golden = parameter_shapes(scanned), (GOLDEN / f'{name.removesuffix("_scanned")}.txt').read_text()
  assert [f'{parameter} {shape}' for parameter, shape in shapes.items()] == [
    line[: line.index(')') + 1] for line in golden.splitlines()
  ]
  shapes.clear()
  assert parameter_shapes(MODELS[name])


def test_widths_are_those_of_the_axes():
  attention = MODELS['switch_attention']
  attention = dataclasses.replace(attention, head_dim=6, moe=dataclasses.replace(attention.moe, expert_mlp_dim=48))
  common = dict(embed=(32,), heads=(4,), vocab=(384,), activation_embed=(32,), activation_vocab=(384,))
  common |= dict(relpos_buckets=(32,), mlp=(64,))
  assert parameter_widths(MODELS['dense']) == common | {'joined_kv': (32,)}
  assert parameter_widths(SWITCH) == common | dict(joined_kv=(32,), expert_embed=(32,), expert_mlp=(64,))
  # The output of an expert in attention is as wide as its heads together.
  assert parameter_widths(attention) == common | dict(joined_kv=(24,), expert_embed=(24, 32), expert_mlp=(48,))
  stacked = parameter_widths(dataclasses.replace(SWITCH, scan_layers=True, num_encoder_layers=6))
  assert stacked['layers'] == (2, 3)
  every = parameter_widths(MODELS['geglu_untied_every_layer'])
  assert 'mlp' not in every


def test_what_changes_no_shape_is_not_traced_again():
  abstract_parameters(SWITCH, Layout.single_device())
  before = _traced.cache_info().misses
  moe = dataclasses.replace(SWITCH.moe, router='top2', eval_capacity_factor=None, sequences_per_group=2)
  other = dataclasses.replace(SWITCH, dropout_rate=0.1, activation_dtype='bfloat16', remat_policy='full', moe=moe)
  assert parameter_shapes(other) == parameter_shapes(SWITCH)
  assert parameter_axes(other) == parameter_axes(SWITCH)
  assert _traced.cache_info().misses == before


def test_shapes_need_no_device():
  """Conversions leave a machine's accelerators to the run that has them."""
  script = (
    'from switch_jax.config import ModelConfig, MoeConfig\n'
    'from switch_jax.model import parameter_shapes\n'
    'sizes = dict(vocab_size=8, emb_dim=4, num_heads=2, head_dim=2, mlp_dim=4)\n'
    'moe = MoeConfig(num_experts=2, encoder_attention_layers=1)\n'
    'assert parameter_shapes(ModelConfig(**sizes, num_encoder_layers=2, num_decoder_layers=2, moe=moe))\n'
  )
  environment = {**os.environ, 'JAX_PLATFORMS': 'no_such_platform'}
  result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, env=environment)
  assert result.returncode == 0, result.stderr


def test_count_is_the_sum_of_the_parts():
  attention, norms, mlp, experts = 4 * 32 * 32, 32, 2 * 32 * 64, 4 * 2 * 32 * 64 + 32 * 4
  encoder = 4 * (attention + 2 * norms) + 2 * mlp + 2 * experts + 32 + 4 * 32
  decoder = 4 * (2 * attention + 3 * norms) + 2 * mlp + 2 * experts + 32 + 4 * 32
  assert parameter_count(abstract_parameters(SWITCH, Layout.single_device())) == 384 * 32 + encoder + decoder


def test_initial_values_follow_the_paper():
  params = init_parameters(SWITCH, Layout.single_device(), jax.random.key(0))
  truncated = 0.8796  # what truncation at two sigma leaves of the standard deviation
  layer = params['encoder']['layers_1']
  for kernel, fan_in in [
    (layer['mlp']['expert']['wi']['kernel'], 32),
    (layer['mlp']['expert']['wo']['kernel'], 64),
    (layer['attention']['value']['kernel'], 32),
    (layer['attention']['query']['kernel'], 32 * 8),  # carries 1 / sqrt(head_dim)
    (params['decoder']['layers_0']['mlp']['wi']['kernel'], 32),
  ]:
    sigma = np.sqrt(0.1 / fan_in)
    np.testing.assert_allclose(np.std(kernel), truncated * sigma, rtol=0.1)
    assert np.abs(kernel).max() <= 2 * sigma * 1.0001
  router = layer['mlp']['router']['router_weights']['w']['kernel']
  np.testing.assert_allclose(np.std(router), truncated * np.sqrt(0.1 / 32), rtol=0.25)
  np.testing.assert_allclose(np.std(params['token_embedder']['embedding']), 1.0, rtol=0.02)
