"""Stretches are a function of a seed and an index; see `tests/tasks/multilingual_test.py` for a task made of them."""

import jax
import numpy as np
import pytest

from switch_jax.config import ConfigError
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.data.sampled_groups import (
  TRAIN_SAMPLE,
  SampledGroups,
  add_sampled_task,
  evaluation_stretches,
  sampling_probabilities,
)
from switch_jax.data.span_corruption import corrupted_lengths, find_raw_length
from switch_jax.data.token_streams import TokenStreams

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)
LENGTHS = {'inputs': 16, 'targets': 8}
RAW_LENGTH = find_raw_length(LENGTHS)


@pytest.fixture(scope='module')
def source():
  """Two groups, the first of digits and the second of letters, eight times as long."""
  train = TokenStreams.of_texts([('digits', '0123456789' * 20), ('letters', 'abcdefgh' * 200)], VOCABULARY)
  held_out = TokenStreams.of_texts([('digits', '98765'), ('letters', 'hgfedcba' * 20)], VOCABULARY)
  return SampledGroups(train, held_out, raw_length=RAW_LENGTH, held_out_tokens=20)


def examples(dataset, count=-1):
  """Returns examples as NumPy arrays."""
  return list(dataset.take(count).as_numpy_iterator())


def test_probabilities():
  np.testing.assert_allclose(sampling_probabilities([1, 3], 1.0), [0.25, 0.75])
  np.testing.assert_allclose(sampling_probabilities([1, 3], 0.0), [0.5, 0.5])
  np.testing.assert_allclose(sampling_probabilities([1, 32], 0.4), [0.2, 0.8])


def test_an_example_depends_on_the_seed_and_its_number_alone(source):
  drawn = examples(source.get_dataset('train', seed=5), 40)
  later = examples(source.get_dataset('train', seed=5, shuffle=False).skip(30), 10)
  jax.tree.map(np.testing.assert_array_equal, drawn[30:], later)
  other = examples(source.get_dataset('train', seed=6), 40)
  assert [e['targets'].tolist() for e in drawn] != [e['targets'].tolist() for e in other]
  assert {tuple(e['seed']) for e in drawn} == {(5, number) for number in range(40)}
  for example in drawn:
    assert len(example['targets']) == RAW_LENGTH
    text = VOCABULARY.decode(example['targets'].tolist()).strip()
    assert text.isdigit() == (example['group'][0] == 1)
    assert text.isalpha() == (example['group'][0] == 2)


def test_held_out_stretches_come_in_turns_until_there_are_enough(source):
  found = examples(source.get_dataset('validation'))
  assert source.num_input_examples('validation') == len(found)
  assert [e['group'][0] for e in found[:2]] == [1, 2]
  letters = [e for e in found if e['group'][0] == 2]
  assert len(letters) == -(-20 // corrupted_lengths(RAW_LENGTH)[1])
  assert source.num_input_examples(TRAIN_SAMPLE) > 2


def test_groups_too_short_for_a_stretch():
  assert evaluation_stretches(np.array([1]), raw_length=10, target_tokens=100).shape == (0, 3)
  assert evaluation_stretches(np.array([2]), raw_length=10, target_tokens=1).tolist() == [[0, 0, 2]]


def test_the_source_has_no_shards(source):
  with pytest.raises(ValueError, match='examples are cut into shards'):
    source.get_dataset('train', shard_info=seqio.ShardInfo(0, 2))


def test_a_task_fills_rows_of_its_lengths_only(source):
  for _ in range(2):  # the second takes the place of the first
    add_sampled_task('sampled', source, VOCABULARY, ['digits', 'letters'], LENGTHS)
  try:
    task = seqio.get_mixture_or_task('sampled')
    first = examples(task.get_dataset(LENGTHS, split='train', shuffle=False, seed=1, try_in_mem_cache=False), 5)
    for example in first:
      assert {name: len(example[name]) for name in LENGTHS} == dict(
        zip(LENGTHS, corrupted_lengths(RAW_LENGTH), strict=True)
      )
      assert example['inputs'][-1] == example['targets'][-1] == 1
    with pytest.raises(ConfigError, match='register it with the same feature_lengths'):
      task.get_dataset({'inputs': 32, 'targets': 16}, split='train', shuffle=False, try_in_mem_cache=False)
  finally:
    seqio.TaskRegistry.remove('sampled')
