"""The beginning of a stretch is the input, the rest the target, and nothing is lost between them."""

import collections

import pytest

from switch_jax.config import ConfigError
from switch_jax.data.prefix_lm import continuation, prefix_lm
from switch_jax.data.quiet_tensorflow import seqio, tf


def split(objective, lengths, documents, add_eos=False):
  """Returns the (inputs, targets) that an objective makes of documents of tokens."""
  features = dict.fromkeys(lengths, seqio.Feature(seqio.ByteVocabulary(), add_eos=add_eos))
  ragged = tf.data.Dataset.from_tensor_slices(tf.ragged.constant(documents, tf.int64))
  with seqio.utils.map_seed_manager(0):
    dataset = objective(ragged.map(lambda tokens: {'targets': tokens}), lengths, features)
  return [(e['inputs'].tolist(), e['targets'].tolist()) for e in dataset.as_numpy_iterator()]


def test_a_stretch_is_cut_in_two():
  pairs = split(prefix_lm, {'inputs': 6, 'targets': 6}, [list(range(10, 22)), [30, 31]])
  assert [inputs + targets for inputs, targets in pairs] == [
    [10, 11, 12, 13, 14],
    [15, 16, 17, 18, 19],
    [20, 21],
    [30, 31],
  ]
  assert all(inputs and targets for inputs, targets in pairs)


def test_every_cut_is_as_likely():
  pairs = split(prefix_lm, {'inputs': 5, 'targets': 5}, [[7, 8, 9, 10]] * 600)
  cuts = collections.Counter(len(inputs) for inputs, _ in pairs)
  assert set(cuts) == {1, 2, 3}
  assert all(abs(count - 200) < 60 for count in cuts.values())  # five standard deviations


def test_a_continuation_always_has_the_same_cut():
  documents = [list(range(5)), list(range(5, 12)), list(range(12, 15))]
  pairs = split(continuation, {'inputs': 3, 'targets': 5}, documents)
  assert pairs == [([0, 1], [2, 3, 4, 5]), ([6, 7], [8, 9, 10, 11]), ([12, 13], [14])]
  # What is no longer than the inputs is left out.
  assert split(continuation, {'inputs': 3, 'targets': 5}, [list(range(8))]) == pairs[:1]
  ended = split(continuation, {'inputs': 3, 'targets': 5}, documents, add_eos=True)
  assert ended == [([*inputs, 1], [*targets, 1]) for inputs, targets in pairs]


@pytest.mark.parametrize(
  ('objective', 'lengths', 'message'),
  [
    (prefix_lm, {'inputs': 2, 'targets': 9}, 'at least 3 inputs'),
    (continuation, {'inputs': 1, 'targets': 9}, 'at least 2 of each'),
    (continuation, {'inputs': 9, 'targets': 1}, 'at least 2 of each'),
  ],
)
def test_too_short_lengths_are_refused(objective, lengths, message):
  with pytest.raises(ConfigError, match=message):
    split(objective, lengths, [[1, 2, 3]])
