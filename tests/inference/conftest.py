"""A small checkpoint, written once, and tasks to evaluate it on."""

import numpy as np
import pytest

from switch_jax.data.quiet_tensorflow import seqio, tf
from tests.inference.written_checkpoints import TEXTS, VOCABULARY, write_checkpoints


@pytest.fixture(scope='session')
def checkpoints(tmp_path_factory):
  return write_checkpoints(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='session')
def generator(checkpoints):
  from switch_jax.inference import Generator

  return Generator.from_checkpoint(checkpoints, batch_size=8)


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
