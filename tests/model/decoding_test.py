"""A step with kept keys and values equals the full forward pass, token by token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.config import MeshConfig, ModelConfig, MoeConfig
from switch_jax.model import Transformer, abstract_parameters
from switch_jax.model.decoding import decode_step, empty_cache, start_memory
from switch_jax.parallel import Layout, make_mesh

ROWS, INPUTS, TARGETS, VOCAB = 8, 7, 6, 24
DENSE = ModelConfig(
  vocab_size=VOCAB, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=2,
  init_scale=1.0, relpos_num_buckets=4, relpos_max_distance=6,
)  # fmt: skip
MOE = MoeConfig(num_experts=4, encoder_layers=1, eval_capacity_factor=None, second_policy_eval='all')


def model_config(moe=None, **fields):
  moe = dataclasses.replace(MOE, **moe) if moe is not None else None
  return dataclasses.replace(DENSE, moe=moe, **fields)


@functools.cache
def layout(data=1, expert=1, model=1):
  mesh = MeshConfig(data=data, expert=expert, model=model)
  return Layout(make_mesh(mesh, None, jax.devices()[: data * expert * model]))


def tokens():
  """Returns inputs with padding, one row of nothing else, and decoder inputs without a 0 after the first."""
  random = np.random.default_rng(0)
  inputs = random.integers(1, VOCAB, (ROWS, INPUTS), dtype=np.int32)
  inputs[1, 4:] = inputs[2, 1:] = inputs[3] = 0
  targets = random.integers(1, VOCAB, (ROWS, TARGETS), dtype=np.int32)
  targets[:, 0] = 0
  return inputs, targets


@functools.partial(jax.jit, static_argnums=(0, 1))
def full(config, where, params, inputs, targets):
  model = Transformer(config, where)
  batch = {'encoder_input_tokens': inputs, 'decoder_input_tokens': targets}
  return model.apply({'params': params}, batch)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def step_by_step(config, where, params, inputs, targets):
  memory = None
  if not config.is_decoder_only:
    encoded, _ = Transformer(config, where).apply({'params': params}, inputs, method='encode')
    memory = start_memory(config, where, params, encoded, inputs)

  def step(cache, at):
    position, newest = at
    logits, cache = decode_step(config, where, params, newest, cache, memory, position)
    return cache, logits

  cache = empty_cache(config, where, *targets.shape)
  _, logits = jax.lax.scan(step, cache, (jnp.arange(targets.shape[1]), targets.T))
  return logits.swapaxes(0, 1)


@functools.cache
def parameters(config, where):
  """Returns random parameters; drawing them here spares a compilation for each model."""
  random = np.random.default_rng(0)

  def draw(path, x):
    name = jax.tree_util.keystr(path)
    mean, width = (
      (1.0, 0.3)
      if 'scale' in name
      else (0.0, 1.0 if 'embedding' in name else x.shape[-1 if x.ndim == 1 else -2] ** -0.5)
    )
    value = random.normal(mean, width, x.shape)
    return jax.device_put(value.astype(np.float32), x.sharding)

  return jax.tree_util.tree_map_with_path(draw, abstract_parameters(config, where))


def difference(config, where=None, **changed):
  """Returns the largest difference of logits between steps (on a mesh) and a full pass (on one device)."""
  return differences(config, where, **changed).max()


def differences(config, where=None, **changed):
  """Returns the difference of every logit."""
  where = where or layout()
  expected = np.asarray(full(config, layout(), parameters(config, layout()), *tokens()), np.float64)
  found = step_by_step(dataclasses.replace(config, **changed), where, parameters(config, where), *tokens())
  assert found.dtype == jnp.float32
  assert np.ptp(expected) > 1
  assert np.abs(np.diff(expected, axis=1)).max() > 0.5, 'positions should differ'
  return np.abs(expected - found)


SWITCH_ATTENTION = dict(decoder_attention_layers=2)
MODELS = {
  'dense, GEGLU, untied': model_config(mlp_activations=('gelu', 'linear'), logits_via_embedding=False),
  'switch': model_config({}),
  'switch, GEGLU, untied, groups': model_config(
    dict(decoder_layers=1, sequences_per_group=4), mlp_activations=('gelu', 'linear'), logits_via_embedding=False
  ),
  'switch attention': model_config(SWITCH_ATTENTION),
  'top-2': model_config(dict(router='top2')),
  'top-3, sigmoids, biases, shared and extra networks': model_config(
    dict(
      router='topk',
      num_selected_experts=3,
      router_scores='sigmoid',
      bias_update_rate=1e-3,
      aux_loss_factor=0.0,
      expert_mlp_dim=8,
      num_shared_experts=2,
      extra_mlp=True,
    )
  ),
  'released': model_config(dict(padding_takes_slots=True)),
  'scanned, padding queries see all': model_config(
    dict(padding_takes_slots=True), mask_padding_queries=False, scan_layers=True, num_decoder_layers=4
  ),
  'decoder-only': model_config({}, num_encoder_layers=0),
  'decoder-only, scanned, rotary, switch attention': model_config(
    SWITCH_ATTENTION, num_encoder_layers=0, scan_layers=True, num_decoder_layers=4, positions='rotary'
  ),
  'scanned, switch attention': model_config(SWITCH_ATTENTION, scan_layers=True, num_decoder_layers=4, scan_unroll=2),
}


@pytest.mark.parametrize('name', MODELS)
def test_steps_equal_a_full_pass(name):
  assert difference(MODELS[name]) < 2e-5


@pytest.mark.parametrize('name', ['switch, GEGLU, untied, groups', 'scanned, switch attention'])
def test_steps_on_a_mesh_equal_one_device(name):
  moe = dataclasses.replace(MODELS[name].moe, sequences_per_group=None)
  assert difference(MODELS[name], layout(2, 2, 2), moe=moe) < 2e-5


@pytest.mark.parametrize('mesh', [(1, 1, 1), (2, 2, 2)], ids=str)
def test_bfloat16_steps_equal_a_bfloat16_pass(mesh):
  found = differences(model_config({}, activation_dtype='bfloat16'), layout(*mesh))
  # A token between two experts may go to the other one where sums are rounded in another order.
  assert np.mean(found > 0.05) < 0.05


def test_a_step_never_drops():
  """With one slot an expert the step computes what it does without dropping."""
  config = model_config(dict(encoder_layers=()))
  assert difference(config, moe=dataclasses.replace(config.moe, expert_capacity=1)) < 2e-5


def test_hypotheses_share_the_memory_of_their_example():
  config = model_config({})
  params = parameters(config, layout())
  inputs, targets = tokens()
  expected = full(config, layout(), params, np.repeat(inputs[:4], 2, axis=0), targets)
  found = step_by_step(config, layout(), params, inputs[:4], targets)
  np.testing.assert_allclose(found, expected, atol=2e-5)
