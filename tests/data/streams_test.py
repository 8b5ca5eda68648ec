"""Streams advance together, and their position is that of the batch they give next."""

import dataclasses

import numpy as np
import pytest

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import streams
from switch_jax.data.quiet_tensorflow import seqio, tf


def made_up_streams(length=100):
  """Returns two streams of batches of one row: 0, 1, 2, ... and 100, 101, 102, ..., each shuffled a little."""
  return streams.Streams(
    {
      number: tf.data.Dataset.range(start, start + length)
      .shuffle(5, seed=0)
      .map(lambda i: {'encoder_input_tokens': i[None, None], 'decoder_target_tokens': i[None, None]})
      for number, start in ((0, 0), (3, 100))
    }
  )


def tokens(batch):
  """Returns the first token of each stream."""
  return {number: int(rows['encoder_input_tokens'][0, 0]) for number, rows in batch.items()}


def test_a_saved_position_goes_on_where_it_was(tmp_path):
  first, second = made_up_streams(), made_up_streams()
  for _ in range(7):
    first.next_batch()
  first.save(tmp_path, [0, 3])
  assert {path.name for path in tmp_path.iterdir()} == {*streams.stream_files(0), *streams.stream_files(3)}
  following = [tokens(first.next_batch()) for _ in range(4)]
  second.restore(tmp_path)
  assert [tokens(second.next_batch()) for _ in range(4)] == following
  assert all(0 <= batch[0] < 100 <= batch[3] for batch in following)


def test_a_stream_that_ends_is_an_error():
  ending = made_up_streams(length=1)
  ending.next_batch()
  with pytest.raises(ConfigError, match=r'training data ended; no preprocessor of a task may limit its examples'):
    ending.next_batch()


def test_what_packing_would_have_added():
  batch = {'encoder_input_tokens': np.array([[5, 6, 0]]), 'decoder_target_tokens': np.array([[7, 0]])}
  found = streams.add_missing_features(batch)
  assert found['encoder_segment_ids'].tolist() == [[1, 1, 0]]
  assert found['encoder_positions'].tolist() == [[0, 1, 0]]
  assert found['decoder_segment_ids'].tolist() == [[1, 0]]
  packed = batch | {'encoder_segment_ids': np.array([[1, 2, 0]])}
  assert streams.add_missing_features(packed)['encoder_segment_ids'].tolist() == [[1, 2, 0]]


def test_cores_are_shared_by_the_pipelines_of_a_host(monkeypatch):
  monkeypatch.setattr(streams, 'num_threads', lambda: 8)
  sizes = [streams.bounded_options(pipelines).threading.private_threadpool_size for pipelines in (1, 4, 100)]
  assert sizes == [8, 2, 1]
  assert streams.bounded_options().deterministic


def test_streams_have_seeds_of_their_own_if_files_of_their_own(add_copy_task):
  config = add_copy_task('two_files', [['abc'], ['abc']])
  provider = seqio.get_mixture_or_task('two_files')

  def seeds(num_data_shards):
    return streams.stream_seeds(provider, dataclasses.replace(config, num_data_shards=num_data_shards), seed=7)

  assert len(set(seeds(2))) == 2
  # SeqIO gives four streams every fourth example of one order, so they must agree on the order.
  assert len(set(seeds(4))) == 1


def test_what_seqio_says_of_a_task_becomes_our_error(add_copy_task):
  config = add_copy_task('read', [['abc']])
  message = r"is 'read', which cannot be read as configured: no such thing"
  with pytest.raises(ConfigError, match=message), streams.reading(config):
    raise ValueError('no such thing')


PAIRS = [([7, 8, 5, 1], [3, 9, 1]), ([8, 4, 9, 3, 1], [4, 1])]


def decoder_rows(examples, lengths, **fields):
  """Returns the first row of a model without an encoder, lists by name."""
  features = [{'inputs': inputs, 'targets': targets} for inputs, targets in examples]
  signature = {name: tf.TensorSpec([None], tf.int32) for name in lengths}
  generate = lambda: ({name: example[name] for name in lengths} for example in features)  # noqa: E731
  dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
  config = DataConfig(mixture_or_task_name='none', feature_lengths=lengths, batch_size=1, **fields)
  rows = streams.to_rows(dataset, config, decoder_only=True).batch(1)
  first = streams.add_missing_features(next(rows.as_numpy_iterator()))
  return {name.removeprefix('decoder_'): row[0].tolist() for name, row in first.items()}


def test_inputs_and_targets_of_a_model_without_an_encoder_follow_each_other():
  """The example of SeqIO's documentation."""
  found = decoder_rows(PAIRS, {'inputs': 7, 'targets': 8})
  assert found == {
    'target_tokens': [7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0],
    'input_tokens': [0, 7, 8, 5, 1, 3, 9, 0, 8, 4, 9, 3, 1, 4, 0],
    'loss_weights': [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0],
    'positions': [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0],
    'segment_ids': [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0],
    'causal_attention': [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0],
  }
  everything = decoder_rows(PAIRS, {'inputs': 7, 'targets': 8}, loss_on_targets_only=False)
  assert everything == found | {'loss_weights': [1] * 14 + [0]}
  apart = decoder_rows(PAIRS, {'inputs': 6, 'targets': 3}, pack=False)
  assert apart['target_tokens'] == [7, 8, 5, 1, 3, 9, 1, 0, 0]
  assert apart['segment_ids'] == [1] * 7 + [0] * 2
  assert apart['positions'] == [*range(7), 0, 0]


def test_rows_of_targets_alone():
  found = decoder_rows(PAIRS, {'targets': 6})
  assert found == {
    'target_tokens': [3, 9, 1, 4, 1, 0],
    'input_tokens': [0, 3, 9, 0, 4, 0],
    'loss_weights': [1, 1, 1, 1, 1, 0],
    'positions': [0, 1, 2, 0, 1, 0],
    'segment_ids': [1, 1, 1, 2, 2, 0],
  }
