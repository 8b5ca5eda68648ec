"""Every layout computes what one device computes, and sends between devices what the paper says and nothing else."""

import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax import gin_files
from switch_jax.config import DataConfig, LossConfig, MeshConfig, ModelConfig, MoeConfig, OptimizerConfig, RunConfig
from switch_jax.model import Transformer, init_parameters
from switch_jax.model.placement import make_layout
from switch_jax.plan.collectives import collectives
from switch_jax.training.state import init_state, plan_state
from switch_jax.training.step import make_train_step
from switch_jax.training.sums import Objective

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAYOUTS = sorted(path.stem for path in ROOT.glob('gin/layouts/*.gin'))
ROWS, INPUTS, TARGETS, WIDTH, EXPERTS = 8, 6, 4, 16, 8

MODEL = ModelConfig(
  vocab_size=32, emb_dim=WIDTH, num_heads=8, head_dim=2, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=1,
  logits_via_embedding=False, init_scale=1.0,
  moe=MoeConfig(
    num_experts=EXPERTS, sequences_per_group=1, exploration='argmax', train_capacity_factor=2.0, decoder_layers=1,
  ),
)  # fmt: skip


# Without an encoder; inputs and targets are the prefix and the rest of a row.
DECODER = dataclasses.replace(
  MODEL, num_encoder_layers=0, num_decoder_layers=2, positions='rotary', prefix_lm=True, scan_layers=True
)


def make_run(mesh=None, model=MODEL, **moe):
  if moe:
    model = dataclasses.replace(model, moe=dataclasses.replace(model.moe, **moe))
  data = DataConfig(
    mixture_or_task_name='none', feature_lengths={'inputs': INPUTS, 'targets': TARGETS}, batch_size=ROWS
  )
  return RunConfig(
    model_dir='none', model=model, data=data, train_steps=1, random_seed=0, mesh=mesh or MeshConfig(),
    loss=LossConfig(z_loss=1e-4), optimizer=OptimizerConfig(learning_rate=0.1, min_dim_size_to_factor=8),
  )  # fmt: skip


@functools.cache
def shipped(name):
  """Returns the mesh of a shipped layout, as a run reads it."""
  files = ['gin/examples/quickstart.gin', f'gin/layouts/{name}.gin']
  return gin_files.load_run(files)[0].mesh


def make_batch(layout, seed=0, decoder_only=False):
  random = np.random.default_rng(seed)
  inputs, targets = (random.integers(1, 32, (ROWS, n), dtype=np.int32) for n in (INPUTS, TARGETS))
  inputs[:2, 4:] = 0  # padding
  targets[1, 2:] = 0
  batch = {
    'encoder_input_tokens': inputs,
    'encoder_segment_ids': (inputs > 0).astype(np.int32),
    'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    'decoder_target_tokens': targets,
    'decoder_segment_ids': np.ones_like(targets),
    'decoder_loss_weights': (targets > 0).astype(np.int32),
  }
  if decoder_only:
    rows = np.concatenate([targets, inputs], axis=1)  # padding ends the rows
    batch = {
      'decoder_input_tokens': np.pad(rows, ((0, 0), (1, 0)))[:, :-1],
      'decoder_target_tokens': rows,
      'decoder_segment_ids': (rows > 0).astype(np.int32),
      'decoder_causal_attention': ((rows > 0) & (np.arange(rows.shape[1]) <= TARGETS)).astype(np.int32),
      'decoder_loss_weights': ((rows > 0) & (np.arange(rows.shape[1]) >= TARGETS)).astype(np.int32),
    }
  return jax.device_put(batch, layout.batch_sharding())


def loss_and_gradient(run, devices):
  """Returns loss and statistics of the routers, the gradient of every parameter, and the collectives."""
  layout = make_layout(run, devices)
  model = Transformer(run.model, layout, deterministic=False)

  def loss(params, batch):
    logits, statistics = model.apply({'params': params}, batch, rngs={'jitter': jax.random.key(1)})
    objective = Objective.of(run)
    return objective.value(objective.sums(logits, batch, statistics))[0], statistics

  params = init_parameters(run.model, layout, jax.random.key(0))
  batch = make_batch(layout, decoder_only=run.model.is_decoder_only)
  step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, batch).compile()
  return *jax.device_get(step(params, batch)), collectives(step.as_text())


@functools.cache
def on_one_device(num_experts, model=MODEL):
  return loss_and_gradient(make_run(model=model, num_experts=num_experts), jax.devices()[:1])


def by_size(data, expert, model, **config):
  return MeshConfig(data=data, expert=expert, model=model, **config)


# Context parallelism: what the model axis splits by default lies whole on it.
BY_POSITION = {'length': 'model'} | dict.fromkeys(
  ('activation_vocab', 'vocab', 'heads', 'joined_kv', 'mlp', 'expert_mlp')
)
MESHES = {
  **{name: (functools.partial(shipped, name), EXPERTS) for name in LAYOUTS},
  '2x2x2': (lambda: by_size(2, 2, 2), EXPERTS),
  'fewer experts than devices': (lambda: by_size(2, 4, 1), 4),
  'more experts than devices': (lambda: by_size(1, 8, 1), 16),
  'positions over the model axis': (lambda: by_size(2, 2, 2, rules=BY_POSITION), EXPERTS),
  'fully sharded on both axes': (lambda: dataclasses.replace(shipped('fully_sharded'), data=2), EXPERTS),
}


@functools.cache
def computed(name, model=MODEL):
  mesh, experts = MESHES[name]
  return loss_and_gradient(make_run(mesh(), model, num_experts=experts), jax.devices())


def test_all_six_layouts_are_there():
  assert LAYOUTS == ['data', 'expert_data', 'expert_model_data', 'fully_sharded', 'model', 'model_data']


@pytest.mark.parametrize(
  ('name', 'model'),
  [(name, MODEL) for name in MESHES if name != 'positions over the model axis']
  + [(name, DECODER) for name in ('2x2x2', 'positions over the model axis')],
  ids=lambda value: 'decoder-only' if value is DECODER else value if isinstance(value, str) else '',
)
def test_layout_equals_one_device(name, model):
  (loss, statistics), gradient, _ = computed(name, model)
  (expected, routing), expected_gradient, _ = on_one_device(MESHES[name][1], model)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  for layer, value in statistics.items():
    for field in ('tokens', 'expert_tokens', 'dropped'):
      np.testing.assert_array_equal(getattr(value, field), getattr(routing[layer], field), err_msg=f'{layer} {field}')
  assert sum(value.dropped.sum() for value in routing.values()) > 0, 'the comparison should see dropped tokens'
  jax.tree_util.tree_map_with_path(
    lambda path, a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6, err_msg=str(path)),
    gradient,
    expected_gradient,
  )


def train(run, devices, steps):
  layout = make_layout(run, devices)
  plan = plan_state(run, layout)
  state, step, losses = init_state(run, layout, plan), make_train_step(run, layout, plan), []
  for i in range(steps):
    state, metrics = step(state, make_batch(layout, seed=i))
    losses.append(metrics['loss'])
  return jax.device_get((losses, state))


@functools.cache
def trained_on_one_device():
  return train(make_run(), jax.devices()[:1], 20)


@pytest.mark.parametrize('name', ['2x2x2', 'fully sharded on both axes'])
def test_twenty_steps_equal_one_device(name):
  losses, state = train(make_run(MESHES[name][0]()), jax.devices(), 20)
  expected, expected_state = trained_on_one_device()
  assert np.ptp(expected) > 0.1, 'the model should learn something'
  np.testing.assert_allclose(losses, expected, atol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), state, expected_state)


def test_fully_sharded_state_has_no_replicas():
  """Parameters and optimizer state outside the experts, small vectors apart, are split over all devices."""
  run = make_run(dataclasses.replace(shipped('fully_sharded'), data=2))
  state = plan_state(run, make_layout(run)).abstract
  for path, x in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)):
    names = jax.tree_util.keystr(path)
    if x.ndim >= 2 and not any(part in names for part in ('rel_embedding', 'router', 'v_row', 'v_col')):
      assert math.prod(x.sharding.shard_shape(x.shape)) == x.size // 8, names


def sent(name):
  """Returns what is sent for loss and gradient, in a layout that has been compared with one device."""
  return computed(name)[2]


def exchanged_bytes(rows):
  """Returns the float32 bytes of an all-to-all of each stack: capacity factor x tokens of a core x width.

  The capacity of a group, here one row, is a whole number of slots.
  """
  return [rows * EXPERTS * max(int(2.0 * tokens / EXPERTS), 1) * WIDTH * 4 for tokens in (INPUTS, TARGETS)]


def test_expert_and_data_parallelism_exchanges_tokens_and_no_more():
  found = sent('expert_data')
  exchanges = [c for c in found if c.kind == 'all-to-all']
  backward = [c for c in exchanges if 'transpose' in c.name]
  assert {c.kind for c in found} == {'all-to-all', 'all-reduce'}
  assert sum(c.count for c in exchanges) == 8, 'two forward and two backward in each of the two Switch layers'
  assert sum(c.count for c in backward) == 4
  assert sorted(c.bytes for c in exchanges) == sorted(exchanged_bytes(rows=1) * 4)


def test_experts_split_over_the_model_axis_send_their_part_of_the_width():
  found = sent('expert_model_data')
  exchanges = [c for c in found if c.kind == 'all-to-all' and 'shard_map' in c.name]
  assert sum(c.count for c in exchanges) == 8
  assert sorted(c.bytes for c in exchanges) == sorted([size // 2 for size in exchanged_bytes(rows=2)] * 4)


@pytest.mark.parametrize('name', ['model', 'model_data'])
def test_model_parallelism_sums_and_exchanges_nothing(name):
  found = sent(name)
  assert not [c for c in found if c.kind == 'all-to-all']
  assert [c for c in found if c.kind == 'all-reduce']


def test_data_parallelism_sums_gradients_only():
  found = sent('data')
  assert {c.kind for c in found} == {'all-reduce'}


def test_fully_sharded_gathers_matrices_and_neither_tokens_nor_experts():
  found = sent('fully sharded on both axes')
  gathered = [c for c in found if c.kind == 'all-gather']
  assert gathered
  largest = max(MODEL.vocab_size, MODEL.mlp_dim, 3 * 16) * WIDTH * 4  # query, key and value are one product
  assert max(c.bytes for c in gathered) <= largest
  assert not [c for c in gathered if 'shard_map' in c.name]
  assert sum(c.count for c in found if c.kind == 'all-to-all' and 'shard_map' in c.name) == 8


def test_bfloat16_on_a_mesh_of_all_axes():
  """A bfloat16 all-reduce in a partly manual region would abort XLA:CPU."""
  model = dataclasses.replace(MODEL, activation_dtype='bfloat16', scan_layers=True, remat_policy='minimal')
  losses, _ = train(make_run(by_size(2, 2, 2), model), jax.devices(), 2)
  assert np.isfinite(losses).all()
  assert jnp.dtype(losses[0].dtype) == jnp.float32
