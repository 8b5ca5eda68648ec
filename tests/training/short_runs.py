"""A few steps of tiny models on random tokens, on any mesh."""

import dataclasses
import functools

import jax
import numpy as np

from switch_jax import config
from switch_jax.parallel import Layout, make_mesh
from switch_jax.training.state import init_state, plan_state
from switch_jax.training.step import make_train_step

MOE = config.MoeConfig(num_experts=4, sequences_per_group=1, expert_dropout_rate=0.4)
MODEL = config.ModelConfig(
  vocab_size=64, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2,
  dropout_rate=0.1, moe=MOE,
)  # fmt: skip
# A balance loss that weighs as much as the rest, groups of two rows of which one is all padding, and no noise.
QUIET = dataclasses.replace(
  MODEL, dropout_rate=0.0, num_encoder_layers=1, num_decoder_layers=1,
  moe=config.MoeConfig(num_experts=4, encoder_layers=1, decoder_layers=1, sequences_per_group=2,
                       exploration='argmax', aux_loss_factor=1.0, router_z_loss_factor=0.1),
)  # fmt: skip
LOSS = config.LossConfig(z_loss=0.01, label_smoothing=0.1)
ONE, FOUR, EIGHT = (1, 1, 1), (2, 1, 2), (2, 2, 2)


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
def train(model, shape, steps=3, padding_rows=0, kernels=(), **settings):
  """Returns the losses of a few steps, the last metrics and the parameters; kernels are pairs of operation and form."""
  data = config.DataConfig(mixture_or_task_name='random', feature_lengths={'inputs': 12, 'targets': 6}, batch_size=8)
  run = config.RunConfig(model_dir='unused', model=model, data=data, train_steps=steps, random_seed=0, **settings)
  mesh = config.MeshConfig(data=shape[0], expert=shape[1], model=shape[2])
  layout = Layout(make_mesh(mesh, None, jax.devices()[: np.prod(shape)]), kernels=kernels)
  plan = plan_state(run, layout)
  state, step = init_state(run, layout, plan), make_train_step(run, layout, plan)
  rows = {name: np.where(np.arange(8)[:, None] < padding_rows, 0, x) for name, x in batch().items()}
  rows = jax.device_put(rows, layout.batch_sharding())
  losses = []
  for _ in range(steps):
    state, metrics = step(state, rows)
    losses.append(float(metrics['loss']))
  return losses, jax.device_get(metrics), jax.device_get(state.params)
