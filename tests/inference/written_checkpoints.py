"""Small checkpoints of random parameters, written as a run writes them."""

import dataclasses

import jax
import numpy as np

from switch_jax import data
from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import CheckpointConfig, ModelConfig, MoeConfig
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.model import abstract_parameters
from switch_jax.parallel import Layout

MODEL = ModelConfig(
  vocab_size=264, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1,
  moe=MoeConfig(num_experts=4, encoder_layers=1, decoder_layers=1),
)  # fmt: skip
DECODER = dataclasses.replace(MODEL, num_encoder_layers=0, positions='rotary')
VOCABULARY = seqio.ByteVocabulary()
STEPS = (10, 20)
TEXTS = ['a small text', '', 'naïve 日本語', 'x' * 100, 'one', 'two', 'three', 'four', 'five', 'six']


def random_parameters(seed, model=MODEL):
  random = np.random.default_rng(seed)
  draw = lambda x: random.normal(0.0 if x.ndim > 1 else 1.5, x.shape[-2] ** -0.5 if x.ndim > 1 else 0.3, x.shape)  # noqa: E731
  return jax.tree.map(lambda x: draw(x).astype(np.float32), abstract_parameters(model, Layout.single_device()))


def write_checkpoints(folder, steps=STEPS, train_steps=20, config=MODEL, **record):
  store = CheckpointStore(folder, CheckpointConfig(keep=None))
  for step in steps:
    record = {
      'model': dataclasses.replace(config, moe=dataclasses.replace(config.moe, sequences_per_group=1)).to_json(),
      'vocabulary': data.describe_vocabulary(VOCABULARY),
      'run': {'data': {'feature_lengths': {'inputs': 24, 'targets': 8}}, 'train_steps': train_steps},
    } | record
    store.save(step, {'params': random_parameters(step, config)}, record)
  store.close()
  return folder
