"""The training step: the same numbers on every mesh, with all noise on, scanned or not, in bfloat16."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax import config
from switch_jax.parallel import Layout, make_mesh
from switch_jax.training.state import init_state, plan_state
from switch_jax.training.step import make_train_step

MOE = config.MoeConfig(num_experts=4, sequences_per_group=1, expert_dropout_rate=0.4)
MODEL = config.ModelConfig(
  vocab_size=64, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2,
  dropout_rate=0.1, moe=MOE,
)  # fmt: skip
ONE, EIGHT = (1, 1, 1), (2, 2, 2)


def batch():
  random = np.random.default_rng(0)
  inputs = random.integers(1, 64, (8, 12), dtype=np.int32)
  targets = random.integers(1, 64, (8, 6), dtype=np.int32)
  inputs[3, 5:] = 0
  weights = np.ones_like(targets)
  weights[2, 2:] = 0
  return {
    'encoder_input_tokens': inputs,
    'encoder_segment_ids': (inputs > 0).astype(np.int32),
    'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    'decoder_target_tokens': targets,
    'decoder_segment_ids': weights,
    'decoder_loss_weights': weights,
  }


@functools.cache
def train(model, shape, steps=3):
  """Returns the losses of a few steps, the last metrics and the parameters."""
  data = config.DataConfig(mixture_or_task_name='random', feature_lengths={'inputs': 12, 'targets': 6}, batch_size=8)
  run = config.RunConfig(model_dir='unused', model=model, data=data, train_steps=steps, random_seed=0)
  mesh = config.MeshConfig(data=shape[0], expert=shape[1], model=shape[2])
  layout = Layout(make_mesh(mesh, None, jax.devices()[: np.prod(shape)]))
  plan = plan_state(run, layout)
  state, step = init_state(run, layout, plan), make_train_step(run, layout, plan)
  rows = jax.device_put(batch(), layout.batch_sharding())
  losses = []
  for _ in range(steps):
    state, metrics = step(state, rows)
    losses.append(float(metrics['loss']))
  return losses, jax.device_get(metrics), jax.device_get(state.params)


def test_one_device_and_eight_draw_the_same_noise():
  one, eight = train(MODEL, ONE), train(MODEL, EIGHT)
  np.testing.assert_allclose(one[0], eight[0], rtol=2e-6)
  for name, value in one[1].items():
    np.testing.assert_allclose(value, eight[1][name], rtol=1e-4, atol=1e-6, err_msg=name)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one[2], eight[2])


def test_noise_is_on():
  quiet = dataclasses.replace(MODEL, dropout_rate=0.0, moe=dataclasses.replace(MOE, expert_dropout_rate=0.0))
  assert train(quiet, ONE)[0][0] != train(MODEL, ONE)[0][0]


def test_bfloat16_trains_on_eight_devices():
  losses, metrics, params = train(dataclasses.replace(MODEL, activation_dtype='bfloat16'), EIGHT)
  np.testing.assert_allclose(losses, train(MODEL, EIGHT)[0], rtol=0.01)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype('float32')}
  assert metrics['grad_norm'].dtype == np.float32


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_residual_stream_has_one_dtype(dtype):
  from switch_jax.model import Transformer

  attention = dataclasses.replace(MOE, encoder_attention_layers=(0,))
  model = dataclasses.replace(MODEL, activation_dtype=dtype, moe=attention)
  transformer = Transformer(model, Layout.single_device())

  def layers():
    rows = batch()
    params = transformer.init(jax.random.key(0), rows)
    found = transformer.apply(params, rows, capture_intermediates=lambda m, _: type(m).__name__ == 'Layer')[1]
    logits = transformer.apply(params, rows)[0]
    return found['intermediates'], logits

  intermediates, logits = jax.eval_shape(layers)
  streams = [value['__call__'][0][0] for stack in ('encoder', 'decoder') for value in intermediates[stack].values()]
  assert len(streams) == 4
  assert {x.dtype for x in streams} == {jnp.dtype(dtype)}
  assert logits.dtype == jnp.float32


@pytest.mark.parametrize('policy', ['minimal', 'full'])
def test_rematerialisation_changes_no_number(policy):
  losses = train(dataclasses.replace(MODEL, remat_policy=policy), ONE)[0]
  np.testing.assert_allclose(losses, train(MODEL, ONE)[0], rtol=2e-6)


def test_scan_equals_the_loop():
  """From the same parameters: the loop's layers are stacked by hand and the first losses compared."""
  from switch_jax.model import Transformer

  model = dataclasses.replace(MODEL, num_encoder_layers=4, num_decoder_layers=4, dropout_rate=0.0)
  layout = Layout.single_device()
  loop, scan = (Transformer(dataclasses.replace(model, scan_layers=s), layout) for s in (False, True))
  rows = batch()
  params = jax.tree.map(lambda box: box.unbox(), loop.init(jax.random.key(0), rows)['params'],
                        is_leaf=lambda x: hasattr(x, 'unbox'))  # fmt: skip
  stacked = dict(params)
  for stack in ('encoder', 'decoder'):
    layers = params[stack]
    pair = lambda i: jax.tree.map(lambda a, b: jnp.stack([a, b]), layers[f'layers_{i}'], layers[f'layers_{i + 2}'])  # noqa: B023, E731
    blocks = {f'layers_{i}': pair(i) for i in range(2)}
    stacked[stack] = {k: v for k, v in layers.items() if not k.startswith('layers_')} | {'blocks': blocks}
  expected, statistics = loop.apply({'params': params}, rows)
  logits, scanned_statistics = scan.apply({'params': stacked}, rows)
  np.testing.assert_allclose(logits, expected, atol=2e-5)
  assert list(scanned_statistics) == list(statistics) == ['encoder_1', 'encoder_3', 'decoder_1', 'decoder_3']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), scanned_statistics, statistics)
