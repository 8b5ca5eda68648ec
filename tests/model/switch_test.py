"""The Switch layer with parameters, on one device and on meshes of eight."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.config import MeshConfig, ModelConfig, MoeConfig
from switch_jax.model.layers import activate
from switch_jax.model.switch import SwitchLayer
from switch_jax.parallel import Layout, make_mesh

ROWS, LENGTH, WIDTH = 8, 6, 16
X = jax.random.normal(jax.random.key(0), (ROWS, LENGTH, WIDTH))
REAL = jnp.arange(LENGTH) < jnp.array([6, 5, 6, 4, 6, 6, 1, 0])[:, None]
BLOCKS = np.load(pathlib.Path(__file__).parents[1] / 'fixtures' / 'hf_blocks.npz')
STREAMS = {'dropout': jax.random.key(1), 'jitter': jax.random.key(2)}


def model_config(activations=('relu',), dtype='float32', **moe):
  moe = dict(num_experts=4, sequences_per_group=1, exploration='argmax') | moe
  if moe.get('router') == 'expert_choice' or moe.get('slot_priority') == 'probability':
    moe |= dict(decoder_layers=())
  return ModelConfig(
    vocab_size=8, emb_dim=WIDTH, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2,
    mlp_activations=activations, activation_dtype=dtype, init_scale=1.0, moe=MoeConfig(**moe),
  )  # fmt: skip


@functools.cache
def layout(data=1, expert=1, model=1):
  mesh = MeshConfig(data=data, expert=expert, model=model)
  return Layout(make_mesh(mesh, None, jax.devices()[: data * expert * model]))


def apply(config, params, x=X, real=REAL, where=None, deterministic=True, never_drop=False, **fields):
  layer = SwitchLayer(config, where or layout(), deterministic, **fields)
  rngs = {} if deterministic else STREAMS
  return jax.jit(lambda p, x: layer.apply({'params': p}, x, real, never_drop, rngs=rngs))(params, x)


@functools.cache
def parameters(config):
  from flax.linen import meta

  layer = SwitchLayer(config, layout(), True)
  params = meta.unbox(jax.jit(lambda: layer.init(jax.random.key(3), X, REAL))())['params']
  if 'expert_bias' in params['router']:  # which begins with 0
    params['router']['expert_bias'] = jnp.linspace(-0.2, 0.2, config.experts.num_experts)
  return params


def dense(config, params, expert, x):
  """Returns what one expert makes of all tokens."""
  names = [n for n in ('wi', 'wi_0', 'wi_1') if n in params['expert']]
  hidden = activate(config, [x @ params['expert'][n]['kernel'][expert] for n in names])
  return hidden @ params['expert']['wo']['kernel'][expert]


@pytest.mark.parametrize('activations', [('relu',), ('gelu', 'linear')], ids=['relu', 'geglu'])
@pytest.mark.parametrize('factor', [1.0, None], ids=['slots', 'drop_free'])
def test_one_expert_is_the_dense_network(activations, factor):
  config = model_config(activations, num_experts=1, eval_capacity_factor=factor, padding_takes_slots=True)
  params = parameters(config)
  y, _ = apply(config, params)
  np.testing.assert_allclose(y, dense(config, params, 0, X), atol=1e-5)


def test_the_gate_is_the_softmax_probability_and_dropped_tokens_are_zero():
  config = model_config(expert_capacity=1)
  params = parameters(config)
  y, statistics = apply(config, params)
  probabilities = jax.nn.softmax(X @ params['router']['router_weights']['w']['kernel'])
  best = np.asarray(probabilities).argmax(-1)
  for row in range(ROWS):
    seen = set()
    for token in range(LENGTH):
      expert = best[row, token]
      expected = np.zeros(WIDTH)
      if REAL[row, token] and expert not in seen:
        expected = probabilities[row, token, expert] * dense(config, params, expert, X[row, token])
        seen.add(expert)
      np.testing.assert_allclose(y[row, token], expected, atol=1e-5)
  assert statistics.dropped.sum() > 0


@pytest.mark.parametrize('router', ['top1', 'no_token_left_behind', 'expert_choice'])
@pytest.mark.parametrize('noise', [dict(jitter_noise=0.3), dict(exploration='input_dropout')], ids=str)
def test_noise_is_seen_by_the_router_in_training_only(router, noise):
  """For every router that explores in Mesh TensorFlow; jitter is the default."""
  noisy = model_config(router=router, **{'exploration': None, **noise})
  params = parameters(noisy)
  plain = dataclasses.replace(noisy, moe=dataclasses.replace(noisy.moe, exploration='argmax'))
  probabilities = {}
  for name, config in (('noisy', noisy), ('plain', plain)):
    for deterministic in (True, False):
      statistics = apply(config, params, deterministic=deterministic)[1]
      probabilities[name, deterministic] = np.asarray(statistics.expert_probability)
  np.testing.assert_array_equal(probabilities['noisy', True], probabilities['plain', True])
  np.testing.assert_array_equal(probabilities['plain', False], probabilities['plain', True])
  assert np.abs(probabilities['noisy', False] - probabilities['plain', False]).max() > 1e-3


def test_jitter_reaches_neither_evaluation_nor_the_experts():
  noisy = model_config(
    exploration='input_jitter', jitter_noise=0.3, train_capacity_factor=4.0, eval_capacity_factor=4.0
  )
  params = parameters(noisy)
  plain = dataclasses.replace(noisy, moe=dataclasses.replace(noisy.moe, exploration='argmax'))
  evaluated = apply(noisy, params)[0]
  np.testing.assert_array_equal(evaluated, apply(plain, params)[0])
  trained = apply(noisy, params, deterministic=False)[0]
  assert not np.allclose(trained, evaluated)
  # Whatever expert a token went to, its output is that expert's of the clean input, up to the gate.
  outputs = np.stack([dense(noisy, params, e, X) for e in range(4)])
  cosine = np.sum(outputs * trained, -1) / (np.linalg.norm(outputs, axis=-1) * np.linalg.norm(trained, axis=-1) + 1e-30)
  np.testing.assert_allclose(cosine.max(0)[np.asarray(REAL)], 1.0, atol=1e-5)


@pytest.mark.parametrize('router', ['top1', 'top2', 'no_token_left_behind', 'expert_choice'])
def test_the_router_learns_from_the_output(router):
  config = model_config(router=router)
  gradient = jax.grad(lambda p: jnp.sum(apply(config, p)[0] ** 2))(parameters(config))
  assert np.abs(gradient['router']['router_weights']['w']['kernel']).max() > 1e-4


@pytest.mark.parametrize('exploration', ['argmax', 'sample', 'input_dropout', 'input_jitter'])
def test_exploration_is_the_same_on_every_mesh(exploration):
  config = model_config(exploration=exploration, expert_dropout_rate=0.4)
  params = parameters(config)
  one = apply(config, params, deterministic=False)
  many = apply(config, params, deterministic=False, where=layout(2, 2, 2))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one, many)


# Three of eight narrow experts by sigmoids and biases, beside two shared ones.
FINE = dict(
  router='topk', num_experts=8, num_selected_experts=3, router_scores='sigmoid', bias_update_rate=1e-3, gate_scale=2.5,
  aux_loss_factor=0.0, expert_mlp_dim=8, num_shared_experts=2, shared_expert_mlp_dim=4,
)  # fmt: skip
FIELDS = [
  FINE | dict(eval_capacity_factor=0.5),
  FINE | dict(eval_capacity_factor=None),
  dict(expert_capacity=1),
  dict(dispatch='einsum'),
  dict(eval_capacity_factor=None),
  dict(router='top2', second_policy_eval='random'),
  dict(router='top2', eval_capacity_factor=None),
  dict(router='no_token_left_behind'),
  dict(router='expert_choice'),
  dict(padding_takes_slots=True, slot_priority='probability'),
]


@pytest.mark.parametrize(
  ('fields', 'mesh'),
  [*((fields, (2, 2, 2)) for fields in FIELDS), ({}, (1, 4, 2)), ({}, (4, 1, 1)), ({}, (2, 4, 1))],
  ids=str,
)
def test_every_mesh_computes_the_same(fields, mesh):
  config = model_config(**fields)
  params = parameters(config)

  def output_and_gradient(where):
    def loss(p):
      y, statistics = apply(config, p, where=where)
      return jnp.sum(jnp.sin(y)) + 0.1 * jnp.sum(statistics.expert_probability**2), (y, statistics)

    return jax.value_and_grad(loss, has_aux=True)(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5),
    output_and_gradient(layout()),
    output_and_gradient(layout(*mesh)),
  )


@pytest.mark.parametrize('fields', [dict(router='top1'), dict(router='top2', second_policy_eval='all'), FINE], ids=str)
def test_drop_free_equals_slots_for_everybody(fields):
  roomy = model_config(expert_capacity=LENGTH, **fields)
  params = parameters(roomy)
  free = model_config(eval_capacity_factor=None, **fields)

  def loss(config, p):
    return jnp.sum(jnp.sin(apply(config, p)[0]))

  for a, b in zip(*(jax.value_and_grad(functools.partial(loss, c))(params) for c in (roomy, free)), strict=True):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), a, b)
  assert apply(free, params)[1].dropped.sum() == 0


def test_never_drop_overrides_the_capacity():
  config = model_config(expert_capacity=1)
  assert apply(config, parameters(config), never_drop=True)[1].dropped.sum() == 0


def test_expert_dropout_drops_only_inside_experts_and_only_in_training():
  config = model_config(expert_dropout_rate=0.5, train_capacity_factor=4.0, eval_capacity_factor=4.0)
  params = parameters(config)
  assert not np.allclose(apply(config, params, deterministic=False)[0], apply(config, params)[0])
  without = dataclasses.replace(config, moe=dataclasses.replace(config.moe, expert_dropout_rate=0.0))
  np.testing.assert_array_equal(apply(config, params)[0], apply(without, params)[0])


def test_each_expert_has_its_own_fan_in():
  config = dataclasses.replace(model_config(num_experts=64), init_scale=0.1)
  kernels = parameters(config)['expert']
  truncated = 0.8796  # what truncation at two sigma leaves of the standard deviation
  np.testing.assert_allclose(np.std(kernels['wi']['kernel']), truncated * np.sqrt(0.1 / WIDTH), rtol=0.03)
  np.testing.assert_allclose(np.std(kernels['wo']['kernel']), truncated * np.sqrt(0.1 / 32), rtol=0.03)
  assert not np.allclose(kernels['wi']['kernel'][0], kernels['wi']['kernel'][1])


def test_bfloat16_layer_routes_as_the_float32_router_does():
  low, high = model_config(dtype='bfloat16', eval_capacity_factor=4.0), model_config(eval_capacity_factor=4.0)
  params = parameters(high)
  x = X.astype(jnp.bfloat16)
  y, statistics = apply(low, params, x)
  expected, in_float32 = apply(high, params, x.astype(jnp.float32))
  assert y.dtype == jnp.bfloat16
  jax.tree.map(np.testing.assert_array_equal, statistics, in_float32)
  np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.05)


@pytest.mark.parametrize('factor', [1.25, None], ids=['slots', 'drop_free'])
def test_only_bfloat16_crosses_an_all_to_all(factor):
  config = model_config(dtype='bfloat16', train_capacity_factor=factor)
  layer = SwitchLayer(config, layout(2, 2, 2), deterministic=False)

  def loss(params, x):
    return jnp.sum(layer.apply({'params': params}, x, REAL, rngs=STREAMS)[0].astype(jnp.float32))

  text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(parameters(config), X.astype(jnp.bfloat16)).as_text()
  exchanges = [line for line in text.splitlines() if 'all_to_all' in line and '->' in line]
  assert exchanges
  assert not [line for line in exchanges if 'xbf16>' not in line.split('->')[-1]]


def of_block(name):
  """Returns the parameters of a block of transformers, whose matrices are transposed, and the rest by name."""
  block = {key.removeprefix(f'{name}/'): BLOCKS[key] for key in BLOCKS if key.startswith(name)}
  block = {key: jnp.asarray(value, jnp.float32) for key, value in block.items()}
  gate, up = jnp.split(block['experts.gate_up_proj'].swapaxes(1, 2), 2, axis=-1)
  kernels = {'wi_0': gate, 'wi_1': up, 'wo': block['experts.down_proj'].swapaxes(1, 2)}
  router = {'router_weights': {'w': {'kernel': block['gate.weight'].T}}}
  params = {'router': router, 'expert': {key: {'kernel': value} for key, value in kernels.items()}}
  if 'gate.e_score_correction_bias' in block:
    router['expert_bias'] = block['gate.e_score_correction_bias']
    shared = {'wi_0': 'gate', 'wi_1': 'up', 'wo': 'down'}
    shared = {key: {'kernel': block[f'shared_experts.{theirs}_proj.weight'].T} for key, theirs in shared.items()}
    params['shared_expert'] = shared
  return params, block


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('mixtral', dict()),
    ('olmoe', dict(num_experts=8, num_selected_experts=3, normalize_gates=False)),
    ('deepseek_v3', FINE | dict(expert_mlp_dim=None, shared_expert_mlp_dim=None)),
  ],
  ids=lambda x: x if isinstance(x, str) else '',
)
def test_equals_the_block_of_transformers(name, fields):
  """Outputs and the gradients of their weighted sum, where no token is dropped."""
  params, block = of_block(name)
  config = model_config(('silu', 'linear'), eval_capacity_factor=None, **{'router': 'topk', **fields})
  config = dataclasses.replace(config, emb_dim=8, mlp_dim=6)
  real = jnp.ones(block['x'].shape[:2], bool)

  def loss(x, kernel):
    changed = params | {'router': params['router'] | {'router_weights': {'w': {'kernel': kernel}}}}
    y = apply(config, changed, x, real)[0]
    return jnp.sum(y * block['weights']), y

  kernel = params['router']['router_weights']['w']['kernel']
  (to_x, to_router), y = jax.grad(loss, argnums=(0, 1), has_aux=True)(block['x'], kernel)
  for found, expected in ((y, 'y'), (to_x, 'gradient/x'), (to_router.T, 'gradient/router')):
    np.testing.assert_allclose(found, block[expected], atol=5e-6, rtol=1e-5)
