"""Every token of a packed row has the number of its example's group."""

import numpy as np
import pytest

from switch_jax.data import groups
from switch_jax.data.quiet_tensorflow import seqio, tf

EXAMPLES = (([5, 6, 1], [7, 1], 2), ([8, 1], [9, 9, 1], 1), ([4] * 7 + [1], [1], 3))


def rows(pack):
  """Returns the rows of three examples in rows of 8 inputs and 6 targets."""
  make = {name: tf.TensorSpec([None], tf.int32) for name in ('inputs', 'targets', 'group')}
  dataset = tf.data.Dataset.from_generator(
    lambda: ({'inputs': i, 'targets': t, 'group': [g]} for i, t, g in EXAMPLES), output_signature=make
  )
  return list(groups.to_grouped_rows(dataset, {'inputs': 8, 'targets': 6}, pack).as_numpy_iterator())


def test_packed_rows_of_several_groups():
  first, second = rows(pack=True)
  assert first['encoder_segment_ids'].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
  assert first['encoder_group_ids'].tolist() == [2, 2, 2, 1, 1, 0, 0, 0]
  assert first['decoder_group_ids'].tolist() == [2, 2, 1, 1, 1, 0]
  assert second['encoder_group_ids'].tolist() == [3] * 8
  assert second['encoder_group_ids'].dtype == np.int32


def test_a_row_for_each_example():
  found = rows(pack=False)
  assert [row['encoder_group_ids'].tolist() for row in found] == [[2] * 3 + [0] * 5, [1] * 2 + [0] * 6, [3] * 8]
  assert [row['decoder_group_ids'].tolist() for row in found] == [[2] * 2 + [0] * 4, [1] * 3 + [0] * 3, [3] + [0] * 5]


def test_names_travel_with_the_feature(add_copy_task):
  add_copy_task('without_groups', [['abc']])
  assert groups.group_names(seqio.get_mixture_or_task('without_groups')) == ()
  feature = groups.group_feature(['de', 'fr'])['group']
  assert feature.vocabulary.names == ('de', 'fr')
  assert feature.vocabulary == groups.GroupNames(('de', 'fr'))
  assert feature.vocabulary != groups.GroupNames(('fr', 'de'))
  with pytest.raises(TypeError, match='unhashable'):
    hash(feature.vocabulary)
