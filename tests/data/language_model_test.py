"""Documents become full rows of targets, and nothing is lost between them."""

import pytest

from switch_jax.config import ConfigError
from switch_jax.data.language_model import language_model
from switch_jax.data.quiet_tensorflow import seqio, tf


def rows(lengths, documents, add_eos=True):
  """Returns the targets that are made of documents of tokens."""
  features = {'targets': seqio.Feature(seqio.ByteVocabulary(), add_eos=add_eos)}
  ragged = tf.data.Dataset.from_tensor_slices(tf.ragged.constant(documents, tf.int64))
  with seqio.utils.map_seed_manager(0):
    dataset = language_model(ragged.map(lambda tokens: {'targets': tokens}), lengths, features)
  return [example['targets'].tolist() for example in dataset.as_numpy_iterator()]


def test_documents_end_with_eos_and_fill_rows():
  assert rows({'targets': 4}, [[5, 6, 7], [8, 9, 10, 11, 12], [13]]) == [
    [5, 6, 7, 1],
    [8, 9, 10, 11],
    [12, 1, 13, 1],
  ]
  assert rows({'targets': 4}, [[5, 6, 7], [8, 9]], add_eos=False) == [[5, 6, 7, 8], [9]]


def test_lengths_that_are_not_of_targets_alone_are_refused():
  with pytest.raises(ConfigError, match=r"a language model has targets alone, .* such as \{'targets': 512\}"):
    rows({'inputs': 4, 'targets': 4}, [[5]])
  with pytest.raises(ConfigError, match='at least 2 of them'):
    rows({'targets': 1}, [[5]])
