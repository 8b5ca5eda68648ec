"""Span corruption hides what it says it hides, and nothing is lost."""

import itertools

import numpy as np
import pytest

from switch_jax.config import ConfigError
from switch_jax.data import span_corruption
from switch_jax.data.quiet_tensorflow import seqio, tf

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)
FEATURES = {name: seqio.Feature(VOCABULARY) for name in ('inputs', 'targets')}
FIRST_SENTINEL = 358
T5_LENGTHS = {'inputs': 512, 'targets': 114}


def put_together(inputs, targets, first_sentinel=FIRST_SENTINEL):
  """Undoes span corruption: every sentinel in the inputs gives way to the tokens after it in the targets."""
  spans = {}
  for token in targets:
    if first_sentinel - 100 < token <= first_sentinel:
      span = spans.setdefault(int(token), [])
    else:
      span.append(int(token))
  return [token for place in inputs for token in spans.get(int(place), [int(place)])]


def corrupt_many(lengths, repeats=1):
  """Returns (inputs, targets) for tokens 3, 4, ... of every length, each with seeds of its own."""

  def one(length, seed):
    tokens = tf.range(3, 3 + tf.cast(length, tf.int32))
    return span_corruption.corrupt(tokens, ([seed, 1], [seed, 2]), first_sentinel=10_000)

  dataset = tf.data.Dataset.from_tensor_slices(list(lengths)).repeat(repeats).enumerate()
  dataset = dataset.map(lambda seed, length: one(length, seed))
  return [(example['inputs'], example['targets']) for example in dataset.as_numpy_iterator()]


def documents(num=300, length=173):
  """Returns a dataset of documents of different bytes, and their bytes one after the other."""
  chance = np.random.default_rng(0)
  texts = [bytes(chance.integers(97, 123, length, dtype=np.uint8)) for _ in range(num)]
  dataset = tf.data.Dataset.from_tensor_slices(texts).map(lambda text: {'targets': VOCABULARY.encode_tf(text)})
  return dataset, [byte + 3 for byte in b''.join(texts)]


def run(dataset, sequence_length=T5_LENGTHS, seed=0, **kwargs):
  """Returns the examples of the whole objective, EOS included."""
  with seqio.utils.map_seed_manager(seed):
    dataset = span_corruption.span_corruption(dataset, sequence_length, FEATURES, **kwargs)
  return list(seqio.preprocessors.append_eos(dataset, FEATURES).as_numpy_iterator())


def test_t5_lengths():
  assert span_corruption.find_raw_length(T5_LENGTHS) == 568
  assert span_corruption.count_noise(568) == (85, 28)
  assert span_corruption.corrupted_lengths(568) == (512, 114)


@pytest.mark.parametrize('inputs', [3, 4, 7, 32, 511, 512, 1024])
@pytest.mark.parametrize('targets', [3, 10, 114, 300])
def test_raw_length_is_the_longest_that_fits(inputs, targets):
  raw_length = span_corruption.find_raw_length({'inputs': inputs, 'targets': targets})
  fitting = span_corruption.corrupted_lengths(raw_length)
  longer = span_corruption.corrupted_lengths(raw_length + 1)
  assert fitting[0] <= inputs
  assert fitting[1] <= targets
  assert longer[0] > inputs or longer[1] > targets


def test_too_short_lengths_are_refused():
  with pytest.raises(ConfigError, match='3 inputs and 3 targets'):
    span_corruption.find_raw_length({'inputs': 2, 'targets': 114})


def test_every_length_counts_as_the_plain_arithmetic():
  lengths = range(2, 700)
  for length, (inputs, targets) in zip(lengths, corrupt_many(lengths), strict=True):
    assert (len(inputs) + 1, len(targets) + 1) == span_corruption.corrupted_lengths(length)


@pytest.mark.parametrize('length', [2, 3, 5, 17, 568])
def test_inputs_and_targets_make_the_text_again(length):
  for inputs, targets in corrupt_many([length], repeats=20):
    assert put_together(inputs, targets, first_sentinel=10_000) == list(range(3, 3 + length))


def test_one_sentinel_a_span_counting_down():
  masked, spans = span_corruption.count_noise(568)
  expected = list(range(10_000, 10_000 - spans, -1))
  for inputs, targets in corrupt_many([568], repeats=20):
    assert [token for token in inputs if token > 1000] == expected
    assert [token for token in targets if token > 1000] == expected
    assert inputs[0] == 3  # begins with a kept span
    assert targets[0] == 10_000
    assert inputs[-1] == expected[-1]  # and ends with a masked one, as T5's
    # 15 % of the tokens, in spans of three on average, none empty.
    assert len(targets) - spans == masked == round(0.15 * 568)
    assert all(a < 1000 or b < 1000 for a, b in itertools.pairwise(targets))
    assert abs(masked / spans - 3) < 0.05


def test_partitions_are_equally_likely():
  seeds = tf.data.Dataset.range(6000).map(lambda seed: span_corruption.random_partition(5, 3, [seed, 0]))
  partitions, counts = np.unique(list(seeds.as_numpy_iterator()), axis=0, return_counts=True)
  expected = [p for p in itertools.product(range(1, 4), repeat=3) if sum(p) == 5]
  assert [tuple(p) for p in partitions] == expected
  np.testing.assert_allclose(counts, 1000, atol=150)  # five standard deviations


def test_rows_are_full_and_no_text_is_lost():
  dataset, tokens = documents()
  examples = run(dataset)
  lengths = [(len(example['inputs']), len(example['targets'])) for example in examples]
  # 128 documents are joined at a time; only the end of what was joined is shorter.
  assert lengths.count((512, 114)) >= len(lengths) - 3
  assert all(example[name][-1] == 1 for example in examples for name in example)
  restored = [put_together(example['inputs'][:-1], example['targets'][:-1]) for example in examples]
  assert list(itertools.chain(*restored)) == tokens


@pytest.mark.parametrize('lengths', [{'inputs': 64, 'targets': 20}, {'inputs': 40, 'targets': 100}])
def test_other_lengths(lengths):
  dataset, _ = documents(num=100)
  fullest = max(run(dataset, lengths), key=lambda example: len(example['inputs']))
  raw_length = span_corruption.find_raw_length(lengths)
  assert (len(fullest['inputs']), len(fullest['targets'])) == span_corruption.corrupted_lengths(raw_length)


def test_the_seed_decides():
  dataset, _ = documents(num=20)
  first, again, other = (run(dataset, seed=seed)[0]['inputs'] for seed in (3, 3, 4))
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)


def test_a_long_document_gives_one_of_its_pieces():
  dataset = tf.data.Dataset.from_tensors({'targets': tf.range(25)}).repeat(50)
  with seqio.utils.map_seed_manager(0):
    chunks = span_corruption.choose_random_chunk(dataset, max_length=10)
  chunks = {tuple(chunk['targets']) for chunk in chunks.as_numpy_iterator()}
  assert chunks == {tuple(range(10)), tuple(range(10, 20)), tuple(range(20, 25))}


def test_empty_documents_and_single_tokens_do_no_harm():
  dataset = tf.data.Dataset.from_tensor_slices(['', 'a']).map(lambda text: {'targets': VOCABULARY.encode_tf(text)})
  assert run(dataset) == []


def test_more_spans_than_sentinels_are_refused():
  dataset, _ = documents(num=2)
  with pytest.raises(ConfigError, match='114 sentinels in a sequence; the vocabulary has 100 extra ids'):
    run(dataset, {'inputs': 2048, 'targets': 512})
