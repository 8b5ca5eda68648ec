"""Batches are what the configuration says, and what cannot work is said before training."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from switch_jax import data
from switch_jax.config import ConfigError
from switch_jax.data.quiet_tensorflow import seqio, tf

LETTER_A, LETTER_B = ord('a') + 3, ord('b') + 3


def take(source, count):
  """Returns the next batches as NumPy arrays."""
  return [jax.tree.map(np.asarray, next(source)) for _ in range(count)]


@pytest.fixture
def open_training(rows_sharding):
  """Returns `data.open_training` for seed 0 unless another is given; closes what was opened."""
  sources = []

  def open_source(config, seed=0):
    sources.append(data.open_training(config, seed, rows_sharding))
    return sources[-1]

  yield open_source
  for source in sources:
    source.close()


def test_batches_are_global_arrays_of_packed_rows(config, open_training, rows_sharding):
  source = open_training(config)
  assert source.vocabulary_size == 359
  batch = next(source)
  encoder = {'encoder_input_tokens', 'encoder_segment_ids', 'encoder_positions'}
  decoder = {
    f'decoder_{name}' for name in ('input_tokens', 'target_tokens', 'segment_ids', 'positions', 'loss_weights')
  }
  assert set(batch) == encoder | decoder
  for name, value in batch.items():
    assert value.shape == (8, 64 if name in encoder else 15)
    assert value.dtype == np.int32
    assert value.sharding.is_equivalent_to(rows_sharding, value.ndim)
  for batch in take(source, 5):
    for tokens, segments in (('encoder_input_tokens', 'encoder'), ('decoder_target_tokens', 'decoder')):
      real = batch[tokens] != 0
      np.testing.assert_array_equal(real, batch[f'{segments}_segment_ids'] > 0)
      assert real.mean() > 0.9
    np.testing.assert_array_equal(batch['decoder_loss_weights'], batch['decoder_target_tokens'] != 0)


def test_the_seed_decides_the_order(config, open_training):
  first, again, other = (take(open_training(config, seed), 2) for seed in (1, 1, 2))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert not np.array_equal(first[0]['encoder_input_tokens'], other[0]['encoder_input_tokens'])


def test_each_stream_gives_its_rows_from_its_own_shard(add_copy_task, open_training):
  config = add_copy_task('letters', [['a' * 7] * 40, ['b' * 7] * 40])
  config = dataclasses.replace(config, num_data_shards=2)
  for batch in take(open_training(config), 20):  # more than an epoch
    tokens = batch['encoder_input_tokens']
    np.testing.assert_array_equal(tokens[:4], np.tile([LETTER_A] * 7 + [1], (4, 2)))
    np.testing.assert_array_equal(tokens[4:], np.tile([LETTER_B] * 7 + [1], (4, 2)))


def test_more_streams_than_files_share_the_examples(add_copy_task, open_training):
  lines = [f'{i:03}' for i in range(96)]
  config = add_copy_task('numbers', [lines])
  config = dataclasses.replace(config, num_data_shards=4, shuffle=False)
  source = open_training(config)
  # An epoch is 96 lines, four to a packed row: 24 rows, so three batches show every line once.
  rows = np.concatenate([batch['encoder_input_tokens'] for batch in take(source, 3)])
  text = source.vocabulary.decode([int(token) for token in rows[rows > 1]])
  assert sorted(text[i : i + 3] for i in range(0, len(text), 3)) == lines


def test_a_mixture_shuffles_with_the_configured_buffer(add_copy_task, open_training):
  first = add_copy_task('mixed_a', [['a'] * 500])
  add_copy_task('mixed_b', [[chr(ord('b') + i % 20) for i in range(500)]])
  seqio.MixtureRegistry.add('mixed', [('mixed_a', 1), ('mixed_b', 3)])
  try:
    config = dataclasses.replace(first, mixture_or_task_name='mixed', pack=False)

    def start(**kwargs):
      source = open_training(dataclasses.replace(config, **kwargs))
      assert source.fingerprint['mixing_rates'] == '{"mixed_a": 1.0, "mixed_b": 3.0}'
      tokens = np.concatenate([batch['encoder_input_tokens'][:, 0] for batch in take(source, 20)])
      assert 0.15 < np.mean(tokens == LETTER_A) < 0.35
      return tokens[tokens != LETTER_A]

    in_order = start(shuffle=False)
    np.testing.assert_array_equal(in_order, [LETTER_B + i % 20 for i in range(len(in_order))])
    # A buffer of one keeps the order; SeqIO's own for a task is 1,000.
    np.testing.assert_array_equal(in_order[:50], start(shuffle_buffer_size=1)[:50])
    assert not np.array_equal(in_order[:50], start(shuffle_buffer_size=100)[:50])
  finally:
    seqio.MixtureRegistry.remove('mixed')


def test_without_packing_a_row_is_one_example(add_copy_task, open_training):
  config = dataclasses.replace(add_copy_task('unpacked', [['abc', 'bc']]), pack=False, shuffle=False)
  batch = take(open_training(config), 1)[0]
  assert batch['encoder_segment_ids'][0].tolist() == [1] * 4 + [0] * 12
  assert batch['decoder_segment_ids'][1].tolist() == [1] * 3 + [0] * 13
  assert batch['decoder_positions'][1].tolist() == [0, 1, 2] + [0] * 13


def test_unknown_names_get_the_nearest_one(config, open_training):
  with pytest.raises(ConfigError, match="Did you mean 'text_files_span_corruption'"):
    open_training(dataclasses.replace(config, mixture_or_task_name='text_file_span_corruption'))
  with pytest.raises(
    ConfigError,
    match=r"no split 'training'; it has train, validation, validation_even, validation_odd. Did you mean 'train'",
  ):
    open_training(dataclasses.replace(config, train_split='training'))


@pytest.mark.parametrize('module', ['tasks.no_such_module', 'broken_task_module'])
def test_a_module_that_cannot_be_imported_is_named(config, open_training, tmp_path, monkeypatch, module):
  (tmp_path / 'broken_task_module.py').write_text('import seqio_typo\n')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ConfigError, match=f"task_module is '{module}', which cannot be imported .*No module named"):
    open_training(dataclasses.replace(config, task_module=module))


def test_no_examples_are_an_error(add_copy_task, open_training):
  with pytest.raises(ConfigError, match='empty_source has no example in its split'):
    open_training(add_copy_task('empty_source', [[]]))
  drop_all = [lambda dataset: dataset.filter(lambda example: tf.size(example['inputs']) > 99)]
  with pytest.raises(ConfigError, match='preprocessors leave nothing over'):
    open_training(add_copy_task('nothing_left', [['abc']], preprocessors=drop_all))
  config = add_copy_task('too_few', [['a', 'b']])
  with pytest.raises(ConfigError, match='for stream 2 of 4'):
    open_training(dataclasses.replace(config, num_data_shards=4))


def test_sources_whose_position_cannot_be_saved_are_refused(add_copy_task, open_training):
  def through_python(dataset):
    def map_one(example):
      inputs = tf.py_function(lambda tokens: tokens, [example['inputs']], tf.int32)
      return {**example, 'inputs': tf.ensure_shape(inputs, [None])}

    return dataset.map(map_one)

  with pytest.raises(ConfigError, match=r'position of this task cannot be saved.*py_function'):
    open_training(add_copy_task('stateful', [['abc']], preprocessors=[through_python]))


def test_a_task_that_must_not_be_shuffled_is_refused(add_copy_task, open_training):
  config = add_copy_task('unshuffled', [['abc']], shuffle_buffer_size=None)
  with pytest.raises(ConfigError, match=r'cannot be read as configured: .*[Ss]huffling'):
    open_training(config)


def test_an_error_in_the_pipeline_reaches_the_reader(add_copy_task, open_training):
  def fail_late(dataset):
    def check(example):
      with tf.control_dependencies([tf.debugging.assert_less(tf.size(example['inputs']), 9, 'too long for me')]):
        return {name: tf.identity(value) for name, value in example.items()}

    return dataset.map(check)

  config = add_copy_task('failing', [['abc', 'a long line']], preprocessors=[fail_late])
  source = open_training(dataclasses.replace(config, shuffle=False))
  for _ in range(2):  # the second reader must not wait forever either
    with pytest.raises(ConfigError, match=r"the task failing failed while .* 'train' were read: .*too long for me"):
      next(source)


def test_streams_must_divide_over_the_hosts(config, open_training, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  with pytest.raises(ConfigError, match='num_data_shards is 1; it must be a multiple of the number of hosts, 3'):
    open_training(config)


def test_rows_must_divide_over_the_devices(config, open_training):
  with pytest.raises(ConfigError, match='batch_size is 12, which the mesh does not divide'):
    open_training(dataclasses.replace(config, batch_size=12))


def test_close_stops_the_thread_and_waiting_is_counted(config, open_training):
  source = open_training(config)
  assert source.wait_seconds == 0
  next(source)
  assert source.wait_seconds > 0
  source.close()
  assert not [thread for thread in threading.enumerate() if thread.name == 'switch_jax data']
  with pytest.raises(RuntimeError, match='closed'):
    next(source)
