"""What is recorded of a task's features, and what of it is compared."""

import numpy as np
import pytest

from switch_jax.config import ConfigError
from switch_jax.data import features, providers
from switch_jax.data.quiet_tensorflow import seqio, tf

LENGTHS = {'inputs': 16, 'targets': 8}


def task(name, add_eos=True):
  vocabulary = seqio.ByteVocabulary(extra_ids=100)
  source = seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.range(1), splits=('train',))
  return seqio.Task(
    name,
    source=source,
    preprocessors=[],
    output_features={
      'inputs': seqio.Feature(vocabulary, add_eos=add_eos, required=False),
      'targets': seqio.Feature(vocabulary),
    },
  )


def test_what_is_recorded():
  record = features.describe_features(task('plain', add_eos=False), LENGTHS)
  assert record == {
    'inputs': {'add_eos': False, 'dtype': 'int32', 'required': False, 'length': 16},
    'targets': {'add_eos': True, 'dtype': 'int32', 'required': True, 'length': 8},
  }
  assert features.recorded_add_eos({'features': record}, 'inputs') is False
  assert features.recorded_add_eos({}, 'inputs') is None
  assert features.recorded_add_eos({'features': None}, 'inputs') is None


def test_what_the_tasks_of_a_mixture_do_not_share_is_none():
  mixture = seqio.Mixture('both', [task('a'), task('b', add_eos=False)], default_rate=1.0)
  record = features.describe_features(mixture, LENGTHS)
  assert record['inputs']['add_eos'] is None
  assert record['targets']['add_eos'] is True
  assert features.recorded_add_eos({'features': record}, 'inputs') is None


def rows(inputs, segments, targets):
  positions = [[0, 1, 0, 1]] * len(inputs)
  return {
    'encoder_input_tokens': np.array(inputs),
    'encoder_segment_ids': np.array(segments),
    'encoder_positions': np.array(positions),
    'decoder_target_tokens': np.array(targets),
    'decoder_segment_ids': np.ones((len(targets), 4), int),
    'decoder_positions': np.array([[0, 1, 2, 3]] * len(targets)),
  }


@pytest.mark.parametrize(
  ('inputs', 'segments', 'ends'),
  [
    ([[5, 1, 6, 1], [7, 1, 0, 0]], [[1, 1, 2, 2], [1, 1, 0, 0]], True),
    ([[5, 4, 6, 3], [1, 7, 0, 0]], [[1, 1, 2, 2], [1, 1, 0, 0]], False),
    ([[5, 1, 6, 3]], [[1, 1, 2, 2]], None),
    ([[0, 0, 0, 0]], [[0, 0, 0, 0]], None),
  ],
)
def test_what_the_examples_do_goes_before_what_the_task_says(inputs, segments, ends):
  declared = features.describe_features(task('plain', add_eos=not ends), LENGTHS)
  found = features.with_observed_eos(declared, [rows(inputs, segments, [[5, 6, 7, 8]] * len(inputs))], 1)
  assert (found['inputs']['ends_with_eos'], found['targets']['ends_with_eos']) == (ends, None)
  expected = (not ends) if ends is None else ends
  assert features.recorded_add_eos({'features': found}, 'inputs') is expected


def test_what_examples_do_that_follow_each_other_in_a_row():
  """Of a model without an encoder: inputs 5 6 1, targets 7 8; inputs 5 6, targets 9 1; neither as long as may be."""
  batch = {
    'decoder_target_tokens': np.array([[5, 6, 1, 7, 8, 5, 6, 9, 1, 0]]),
    'decoder_segment_ids': np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0]]),
    'decoder_positions': np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0]]),
    'decoder_causal_attention': np.array([[1, 1, 1, 1, 0, 1, 1, 1, 0, 0]]),
  }

  def ends(inputs, targets):
    declared = features.describe_features(task('plain'), {'inputs': inputs, 'targets': targets})
    found = features.with_observed_eos(declared, [batch], 1)
    return found['inputs']['ends_with_eos'], found['targets']['ends_with_eos']

  assert ends(9, 9) == (None, None)  # they do not agree
  assert ends(2, 9) == (True, None)  # the second inputs may have been cut
  assert ends(3, 9) == (False, None)
  assert ends(9, 2) == (None, None)


def test_differences_in_words():
  record = features.describe_features(task('plain'), LENGTHS)
  other = task('plain', add_eos=False)
  assert features.differing_features(record, other, {'inputs': 99, 'targets': 99}) == [
    'add_eos of inputs was True and is False'
  ]
  assert features.differing_features(None, other, LENGTHS) == []


def test_a_run_goes_on_with_the_same_features_only():
  then, now = ({'seed': 0, **features.fingerprint_features(features.describe_features(t, LENGTHS))} for t in
               (task('plain'), task('plain', add_eos=False)))  # fmt: skip
  with pytest.raises(ConfigError, match=r"inputs_features was 'add_eos True, .*' and is 'add_eos False, .*restore the"):
    providers.check_fingerprint(then, now)
  providers.check_fingerprint({'seed': 0}, now)  # a checkpoint of an older version
