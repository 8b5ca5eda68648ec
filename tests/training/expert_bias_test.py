"""Biases that follow the load: alike on every mesh, in microbatches and stacked, and in spite of the optimizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from switch_jax import config
from switch_jax.model import abstract_parameters, losses
from switch_jax.parallel import Layout
from switch_jax.training.expert_bias import move_biases
from tests.training.short_runs import EIGHT, ONE, QUIET, train

RATE = 0.01
# Three of eight narrow experts by sigmoids and biases, beside two shared ones.
MOE = config.MoeConfig(
  num_experts=8, router='topk', num_selected_experts=3, router_scores='sigmoid', gate_scale=2.5, bias_update_rate=RATE,
  aux_loss_factor=0.0, expert_mlp_dim=8, num_shared_experts=2, shared_expert_mlp_dim=4, encoder_layers=1,
  decoder_layers=(), sequences_per_group=1, train_capacity_factor=1.0,
)  # fmt: skip
MODEL = dataclasses.replace(QUIET, num_encoder_layers=2, moe=MOE, scan_layers=True)


def router_sums(load):
  zeros = dict.fromkeys((field.name for field in dataclasses.fields(losses.RouterSums)), 0.0)
  return losses.RouterSums(**zeros | {'expert_tokens': jnp.asarray(load, jnp.float32)})


def test_each_bias_goes_towards_an_even_load():
  """Whatever the layers are called, stacked or not; 5 tokens an expert are even."""
  moe = dataclasses.replace(MOE, num_experts=4, encoder_layers=(1,), decoder_layers=(), encoder_attention_layers=1)
  loads = {'encoder_0_attention': [5, 5, 5, 5], 'encoder_1_attention': [0, 10, 5, 5], 'encoder_1': [9, 1, 9, 1]}
  routers = {layer: router_sums(load) for layer, load in loads.items()}
  wanted = {'encoder_0_attention': [0, 0, 0, 0], 'encoder_1_attention': [1, -1, 0, 0], 'encoder_1': [-1, 1, -1, 1]}
  for scanned in (False, True):
    model = dataclasses.replace(MODEL, moe=moe, scan_layers=scanned)
    shapes = abstract_parameters(model, Layout.single_device())
    before = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    after = jax.tree.map(lambda x: x + 1.0, before)
    moved = move_biases(after, before, routers, model)
    layers = moved['encoder']['blocks'] if scanned else moved['encoder']
    for layer, signs in wanted.items():
      number, part = layer.split('_')[1], ('attention', 'query_key_value') if 'attention' in layer else ('mlp',)
      router = layers[f'layers_{number}']
      for name in (*part, 'router'):
        router = router[name]
      np.testing.assert_allclose(router['expert_bias'].reshape(-1), RATE * np.array(signs), rtol=1e-6)
      np.testing.assert_array_equal(router['router_weights']['w']['kernel'], 1.0)


def test_biases_are_the_same_on_every_mesh():
  """In microbatches and stacked layers; weight decay of 1 would take everything away."""
  optimizer = config.OptimizerConfig(name='adamw', schedule='constant', learning_rate=1e-3, weight_decay=0.1)
  one, eight = (train(MODEL, shape, steps=2, num_microbatches=2, optimizer=optimizer) for shape in (ONE, EIGHT))
  np.testing.assert_allclose(one[0], eight[0], rtol=2e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one[1], eight[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one[2], eight[2])
  bias = one[2]['encoder']['blocks']['layers_0']['mlp']['router']['expert_bias']
  assert bias.shape == (2, 8)
  steps = np.asarray(bias, np.float64) / RATE
  np.testing.assert_allclose(steps, np.round(steps), atol=1e-5)
  assert np.abs(steps).max() > 1.9
  tokens = 8 * 12 - 7  # each of them has three choices
  assert one[1]['routers']['expert_tokens'].sum(axis=1).tolist() == [3 * tokens] * 2
