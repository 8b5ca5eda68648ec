"""Data sets that are not there are named and never downloaded, and what pre-training does to texts."""

import functools

import pytest
from switch_jax.tasks.tfds_source import TfdsSource, unlabelled_text

from switch_jax.config import ConfigError
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.vocabularies import make_vocabulary
from switch_jax.tasks import text_to_text


def test_data_that_is_not_there(monkeypatch):
  import tensorflow_datasets as tfds

  downloads = []
  monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', lambda self, **given: downloads.append(self))
  source = TfdsSource('glue/sst2:1.0.0', ('train',))
  for read in (source.get_dataset, source.list_shards, source.num_input_examples):
    with pytest.raises(ConfigError, match=r'glue/sst2:1.0.0 is not in .*tensorflow_datasets.*tfds.load.*TFDS_DATA_DIR'):
      read('train')
  assert downloads == []


def test_splits_are_known_without_the_data():
  assert list(TfdsSource('glue/sst2:1.0.0', ('train', 'test')).splits) == ['train', 'test']
  assert list(TfdsSource('glue/sst2:1.0.0', {'train': 'train[:5]', 'rest': 'train[5:]'}).splits) == ['train', 'rest']


def test_a_split_is_the_part_of_the_data_set_that_it_names(mock_data):
  source = TfdsSource('glue/sst2:1.0.0', {'held_out': 'validation'})
  assert len(list(source.get_dataset('held_out', shuffle=False))) == 3  # as many as there are mock examples


def test_pre_training_takes_the_text_alone():
  """An objective of the test's own puts the tokens on both sides; then each is trimmed and ended."""

  def both(dataset, sequence_length, output_features):
    return dataset.map(lambda example: {'inputs': example['targets'], 'targets': example['targets']})

  vocabulary = make_vocabulary('bytes')
  texts = {'text': ['abcdef', 'é'], 'url': ['x', 'y']}
  dataset = tf.data.Dataset.from_tensor_slices(texts)
  features, lengths = text_to_text.features_of(vocabulary), {'inputs': 9, 'targets': 4}
  for step in unlabelled_text(both):
    if isinstance(step, seqio.CacheDatasetPlaceholder):
      continue
    names = seqio.utils.inspect.signature(step).parameters
    given = {'output_features': features, 'sequence_length': lengths}
    dataset = functools.partial(step, **{n: v for n, v in given.items() if n in names})(dataset)
  first, second = dataset.as_numpy_iterator()
  assert set(first) == {'inputs', 'targets'}
  assert vocabulary.decode(first['inputs'].tolist()) == 'abcdef'
  assert vocabulary.decode(first['targets'].tolist()) == 'abc'
  assert [first[name][-1] for name in ('inputs', 'targets')] == [1, 1]
  assert len(second['targets']) == 3
