"""The training step: the same numbers on every mesh, with all noise on, scanned or not, in bfloat16."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax import config
from switch_jax.model import init_parameters
from switch_jax.parallel import Layout, make_mesh
from switch_jax.training import microbatches
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
def train(model, shape, steps=3, padding_rows=0, **settings):
  """Returns the losses of a few steps, the last metrics and the parameters."""
  data = config.DataConfig(mixture_or_task_name='random', feature_lengths={'inputs': 12, 'targets': 6}, batch_size=8)
  run = config.RunConfig(model_dir='unused', model=model, data=data, train_steps=steps, random_seed=0, **settings)
  mesh = config.MeshConfig(data=shape[0], expert=shape[1], model=shape[2])
  layout = Layout(make_mesh(mesh, None, jax.devices()[: np.prod(shape)]))
  plan = plan_state(run, layout)
  state, step = init_state(run, layout, plan), make_train_step(run, layout, plan)
  rows = {name: np.where(np.arange(8)[:, None] < padding_rows, 0, x) for name, x in batch().items()}
  rows = jax.device_put(rows, layout.batch_sharding())
  losses = []
  for _ in range(steps):
    state, metrics = step(state, rows)
    losses.append(float(metrics['loss']))
  return losses, jax.device_get(metrics), jax.device_get(state.params)


def test_one_device_and_eight_draw_the_same_noise():
  one, eight = train(MODEL, ONE), train(MODEL, EIGHT)
  np.testing.assert_allclose(one[0], eight[0], rtol=2e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one[1], eight[1])
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


# A balance loss that weighs as much as the rest, groups of two rows of which one is all padding, and no noise.
QUIET = dataclasses.replace(
  MODEL, dropout_rate=0.0, num_encoder_layers=1, num_decoder_layers=1,
  moe=config.MoeConfig(num_experts=4, encoder_layers=1, decoder_layers=1, sequences_per_group=2,
                       exploration='argmax', aux_loss_factor=1.0, router_z_loss_factor=0.1),
)  # fmt: skip
LOSS = config.LossConfig(z_loss=0.01, label_smoothing=0.1)
FOUR = (2, 1, 2)


@pytest.mark.parametrize(('shape', 'aggregate'), [(ONE, 'sum'), (FOUR, 'mean')])
def test_microbatches_make_the_update_of_the_full_batch(shape, aggregate):
  model = dataclasses.replace(QUIET, moe=dataclasses.replace(QUIET.moe, router_loss_aggregate=aggregate))
  whole, parts = (train(model, shape, steps=2, padding_rows=2, num_microbatches=n, loss=LOSS) for n in (1, 2))
  np.testing.assert_allclose(parts[0], whole[0], rtol=2e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), parts[1], whole[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), parts[2], whole[2])
  assert whole[1]['target_tokens'] == 32  # and not the 44 of a batch without padding


@pytest.mark.parametrize(('shape', 'parts'), [(ONE, 1), (FOUR, 2)])
def test_the_loss_is_divided_once_by_the_target_tokens_of_the_global_batch(shape, parts):
  from switch_jax.model import Transformer

  metrics = train(QUIET, shape, steps=1, padding_rows=2, num_microbatches=parts, loss=LOSS)[1]
  rows = {name: np.where(np.arange(8)[:, None] < 2, 0, x) for name, x in batch().items()}
  params = init_parameters(QUIET, Layout.single_device(), jax.random.key(0))
  model = Transformer(QUIET, Layout.single_device(), deterministic=False)
  logits = np.asarray(jax.jit(model.apply)({'params': params}, rows)[0], np.float64)
  weights = rows['decoder_loss_weights']
  partition = np.log(np.sum(np.exp(logits), axis=-1))
  target = np.full(logits.shape, 0.1 / 63)
  np.put_along_axis(target, rows['decoder_target_tokens'][..., None], 0.9, axis=-1)
  cross_entropy = np.sum(target * (np.log(target) - logits + partition[..., None]), axis=-1)
  assert weights.sum() == metrics['target_tokens'] == 32
  expected = np.sum(cross_entropy * weights) / 32
  z_loss = 0.01 * np.sum(np.square(partition) * weights) / 32
  np.testing.assert_allclose(metrics['cross_ent_loss'], expected, rtol=1e-5)
  np.testing.assert_allclose(metrics['z_loss'], z_loss, rtol=1e-5)
  routers = metrics['load_balance_loss'] + 0.1 * metrics['router_z_loss']
  np.testing.assert_allclose(metrics['loss'], expected + z_loss + routers, rtol=1e-5)


def test_noise_of_microbatches_does_not_depend_on_the_mesh():
  noisy = dataclasses.replace(QUIET, dropout_rate=0.1, moe=dataclasses.replace(MOE, encoder_layers=1, decoder_layers=1))
  one, eight = train(noisy, ONE, num_microbatches=2), train(noisy, EIGHT, num_microbatches=2)
  np.testing.assert_allclose(one[0], eight[0], rtol=2e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one[2], eight[2])


def test_rows_of_microbatches_stay_on_their_devices():
  layout = Layout(make_mesh(config.MeshConfig(data=2, expert=4, model=1), None))
  rows = np.arange(32 * 3, dtype=np.int32).reshape(32, 3)
  split = jax.jit(lambda x: microbatches.split({'x': x}, 2, QUIET, layout)['x'], in_shardings=layout.batch_sharding())
  program = split.lower(rows).compile()
  assert not re.search('all-gather|all-to-all|collective-permute|all-reduce', program.as_text())
  found = np.asarray(split(rows))
  for part in range(2):  # every second pair of rows
    np.testing.assert_array_equal(found[part], rows.reshape(8, 2, 2, 3)[:, part].reshape(16, 3))


def test_clipping_by_the_global_norm_counts_every_expert_once_on_any_mesh():
  # AdamW with a large epsilon: the update is proportional to the gradient, so that its length shows.
  optimizer = config.OptimizerConfig(
    name='adamw', epsilon=1e3, beta1=0.0, learning_rate=100.0, schedule='constant', warmup_steps=0, max_grad_norm=0.01
  )
  one, four = (train(QUIET, shape, steps=1, optimizer=optimizer) for shape in (ONE, FOUR))
  start = init_parameters(QUIET, Layout.single_device(), jax.random.key(0))
  change = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, one[2], start)
  assert one[1]['grad_norm'] > 0.1
  length = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(change)))
  np.testing.assert_allclose(length, 0.1 * 0.01, rtol=2e-3)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), one[2], four[2])


def test_a_batch_of_padding_is_no_nan():
  losses, metrics, params = train(QUIET, ONE, steps=1, padding_rows=8, num_microbatches=2)
  assert losses == [0.0]
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((metrics, params)))
