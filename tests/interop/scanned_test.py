"""Scanned blocks and separate layers, one from the other."""

import dataclasses

import jax
import numpy as np
import pytest

from switch_jax.interop import scanned, stored
from switch_jax.model import abstract_parameters, parameter_shapes
from switch_jax.parallel import Layout
from tests.interop.own_checkpoints import ATTENTION, DECODERS, MODELS

KINDS = {name: MODELS[name] for name in ('c', 'dense')} | ATTENTION | DECODERS


@pytest.mark.parametrize('config', KINDS.values(), ids=KINDS)
def test_stacks_are_those_of_the_model(config):
  """Stacked layers have the shapes of a model with `scan_layers`, and come apart again."""
  config = dataclasses.replace(config, scan_layers=True)
  random = np.random.default_rng(0)
  params = {name: random.normal(size=shape) for name, shape in parameter_shapes(config).items()}
  stacked = scanned.stack_layers(stored.nest(params), config)
  expected = abstract_parameters(config, Layout.single_device())
  assert jax.tree.map(np.shape, stacked) == jax.tree.map(lambda x: x.shape, expected)
  jax.tree.map(np.testing.assert_array_equal, scanned.separate_layers(stacked, config), stored.nest(params))


def test_names_of_layers_and_of_blocks():
  config = MODELS['scanned']
  name = 'decoder/layers_3/mlp/expert/wi/kernel'
  assert scanned.scanned_name(name, config) == ('decoder/blocks/layers_1/mlp/expert/wi/kernel', 1)
  assert scanned.scanned_rows('decoder/blocks/layers_1/mlp/expert/wi/kernel', config)[1] == name
  assert scanned.scanned_name('decoder/decoder_norm/scale', config) == ('decoder/decoder_norm/scale', -1)
  assert scanned.scanned_rows('decoder/decoder_norm/scale', config) is None
