"""The training step: the same numbers on every mesh, with all noise on, scanned or not, in bfloat16."""

import dataclasses

import jax
import numpy as np
import pytest

from switch_jax import config
from switch_jax.kernels import fused_attention
from switch_jax.model import Transformer, init_parameters
from switch_jax.parallel import Layout, update_sharding
from switch_jax.training.state import init_state, plan_state
from switch_jax.training.step import make_train_step, step_streams
from tests.training.short_runs import EIGHT, FOUR, LOSS, MODEL, MOE, ONE, QUIET, batch, train


def test_one_device_and_eight_draw_the_same_noise():
  one, eight = train(MODEL, ONE), train(MODEL, EIGHT)
  np.testing.assert_allclose(one[0], eight[0], rtol=2e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one[1], eight[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one[2], eight[2])


def test_the_forms_for_tpus_train_as_the_plain_ones(monkeypatch):
  monkeypatch.setattr(fused_attention, 'INTERPRET', True)
  monkeypatch.setattr(update_sharding, 'SMALLEST_SPLIT', 64)
  asked = {'attention': 'fused', 'projections': 'apart', 'positions': 'products', 'update': 'sharded'}
  moe = dataclasses.replace(MOE, sequences_per_group=None, encoder_layers=1, decoder_layers=1)
  model = dataclasses.replace(MODEL, num_encoder_layers=1, num_decoder_layers=1, moe=moe)
  found = train(model, FOUR, kernels=tuple(asked.items()), num_microbatches=2)
  plain = train(model, FOUR, num_microbatches=2)
  np.testing.assert_allclose(found[0], plain[0], rtol=2e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found[1], plain[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found[2], plain[2])


def test_noise_is_on():
  quiet = dataclasses.replace(MODEL, dropout_rate=0.0, moe=dataclasses.replace(MOE, expert_dropout_rate=0.0))
  assert train(quiet, ONE)[0][0] != train(MODEL, ONE)[0][0]


def test_bfloat16_trains_on_eight_devices():
  losses, metrics, params = train(dataclasses.replace(MODEL, activation_dtype='bfloat16'), EIGHT)
  np.testing.assert_allclose(losses, train(MODEL, EIGHT)[0], rtol=0.01)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype('float32')}
  assert metrics['grad_norm'].dtype == np.float32


@pytest.mark.parametrize('policy', ['minimal', 'full'])
def test_rematerialisation_changes_no_number(policy):
  losses = train(dataclasses.replace(MODEL, remat_policy=policy), ONE)[0]
  np.testing.assert_allclose(losses, train(MODEL, ONE)[0], rtol=2e-6)


def three_steps(model, change=lambda params: params):
  """Trains by one rule of factoring; returns the parameters of the beginning, the last loss and the parameters."""
  data = config.DataConfig(mixture_or_task_name='x', feature_lengths={'inputs': 12, 'targets': 6}, batch_size=8)
  optimizer = config.OptimizerConfig(factor_experts='by_size', warmup_steps=25)
  run = config.RunConfig(model_dir='x', model=model, data=data, train_steps=3, random_seed=0, optimizer=optimizer)
  layout = Layout.single_device()
  plan = plan_state(run, layout)
  state, step = init_state(run, layout, plan), make_train_step(run, layout, plan)
  start = change(jax.device_get(state.params))
  state = dataclasses.replace(state, params=jax.tree.map(jax.device_put, start, plan.shardings.params))
  for _ in range(3):
    state, metrics = step(state, jax.device_put(batch(), layout.batch_sharding()))
  return start, float(metrics['cross_ent_loss']), jax.device_get(state.params)


def test_one_expert_learns_as_the_dense_model():
  """From the same weights; the router of one expert learns nothing."""
  start, loss, dense = three_steps(dataclasses.replace(QUIET, moe=None))

  def from_dense(params):
    for stack in ('encoder', 'decoder'):
      router = params[stack]['layers_0']['mlp']['router']
      params[stack] = start[stack] | {'layers_0': dict(start[stack]['layers_0'])}
      params[stack]['layers_0']['mlp'] = {'expert': one_expert(start[stack]), 'router': router}
    return params | {'token_embedder': start['token_embedder']}

  moe = dataclasses.replace(QUIET.experts, num_experts=1, router_z_loss_factor=0.0, train_capacity_factor=1.0)
  begun, found_loss, found = three_steps(dataclasses.replace(QUIET, moe=moe), from_dense)
  np.testing.assert_allclose(found_loss, loss, rtol=1e-6)
  for stack in ('encoder', 'decoder'):
    expected = {'expert': one_expert(dense[stack]), 'router': begun[stack]['layers_0']['mlp']['router']}
    dense[stack]['layers_0']['mlp'] = expected
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, dense)
  assert (
    np.abs(
      found['encoder']['layers_0']['mlp']['expert']['wi']['kernel'] - one_expert(start['encoder'])['wi']['kernel']
    ).max()
    > 1e-2
  )


def one_expert(stack):
  """Returns the dense feed-forward network of a stack's first layer as a stack of one expert."""
  return jax.tree.map(lambda x: x[None], stack['layers_0']['mlp'])


@pytest.mark.parametrize(('shape', 'parts'), [(ONE, 1), (FOUR, 2)])
def test_the_loss_is_divided_once_by_the_target_tokens_of_the_global_batch(shape, parts):
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


def test_streams_are_a_function_of_seed_and_step():
  draw = lambda seed, step: {  # noqa: E731
    name: jax.random.uniform(key).item() for name, key in step_streams(seed, jax.numpy.int32(step)).items()
  }
  assert draw(0, 3) == draw(0, 3)
  assert len({value for at in ((0, 3), (0, 4), (1, 3)) for value in draw(*at).values()}) == 6
