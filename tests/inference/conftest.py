"""A small checkpoint of random parameters, written as a run writes it, and tasks to evaluate it on."""

import dataclasses

import jax
import numpy as np
import pytest

from switch_jax import data
from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import CheckpointConfig, ModelConfig, MoeConfig
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.model import abstract_parameters
from switch_jax.parallel import Layout

MODEL = ModelConfig(
  vocab_size=264, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1,
  moe=MoeConfig(num_experts=4, encoder_layers=1, decoder_layers=1),
)  # fmt: skip
VOCABULARY = seqio.ByteVocabulary()
STEPS = (10, 20)
TEXTS = ['a small text', '', 'naïve 日本語', 'x' * 100, 'one', 'two', 'three', 'four', 'five', 'six']


def random_parameters(seed):
  random = np.random.default_rng(seed)
  draw = lambda x: random.normal(0.0 if x.ndim > 1 else 1.5, x.shape[-2] ** -0.5 if x.ndim > 1 else 0.3, x.shape)  # noqa: E731
  return jax.tree.map(lambda x: draw(x).astype(np.float32), abstract_parameters(MODEL, Layout.single_device()))


def write_checkpoints(folder, steps=STEPS, train_steps=20, **record):
  store = CheckpointStore(folder, CheckpointConfig(keep=None))
  for step in steps:
    record = {
      'model': dataclasses.replace(MODEL, moe=dataclasses.replace(MODEL.moe, sequences_per_group=1)).to_json(),
      'vocabulary': data.describe_vocabulary(VOCABULARY),
      'run': {'data': {'feature_lengths': {'inputs': 24, 'targets': 8}}, 'train_steps': train_steps},
    } | record
    store.save(step, {'params': random_parameters(step)}, record)
  store.close()
  return folder


@pytest.fixture(scope='session')
def checkpoints(tmp_path_factory):
  return write_checkpoints(tmp_path_factory.mktemp('run'))


@pytest.fixture
def model_dir(checkpoints, tmp_path):
  """A MODEL_DIR of its own for each test, with the shared checkpoints."""
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'checkpoints').symlink_to(checkpoints / 'checkpoints')
  return tmp_path / 'run'


def first_letters(targets, predictions):
  return {'first_letters': 100 * np.mean([t[:1] == p[:1] for t, p in zip(targets, predictions, strict=True)])}


def mean_score(targets, scores):
  assert len(targets) == len(scores)
  return {'mean_score': np.mean(scores)}


def broken(targets, predictions):
  raise ZeroDivisionError('nothing to divide by')


def _source(texts):
  def make(split, shuffle_files, seed=None):
    del split, shuffle_files, seed
    return tf.data.Dataset.from_tensor_slices({'inputs': texts, 'targets': texts}) if texts else (
      tf.data.Dataset.from_tensor_slices({'inputs': ['a'], 'targets': ['a']}).take(0)
    )  # fmt: skip

  return seqio.FunctionDataSource(make, splits=('train', 'validation'))


@pytest.fixture(scope='session')
def tasks():
  """Registers tasks that repeat their inputs."""
  made = {
    'letters': (TEXTS, [first_letters]),
    'scores': (TEXTS[:3], [mean_score, first_letters]),
    'no_metric': (TEXTS, []),
    'broken_metric': (TEXTS, [broken]),
    'no_example': ([], [first_letters]),
    'other_vocabulary': (TEXTS, [first_letters]),
  }
  for name, (texts, metrics) in made.items():
    vocabulary = seqio.ByteVocabulary(extra_ids=2) if name == 'other_vocabulary' else VOCABULARY
    seqio.TaskRegistry.add(
      f'repeat_{name}',
      source=_source(texts),
      preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
      output_features={feature: seqio.Feature(vocabulary, add_eos=True) for feature in ('inputs', 'targets')},
      metric_fns=metrics,
    )
  seqio.MixtureRegistry.add('repeat_both', ['repeat_letters', 'repeat_scores'], default_rate=1.0)
  yield
  for name in made:
    seqio.TaskRegistry.remove(f'repeat_{name}')
  seqio.MixtureRegistry.remove('repeat_both')
