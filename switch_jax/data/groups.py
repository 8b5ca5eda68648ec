"""Groups of examples (the languages of a multilingual task) whose losses are reported apart.

A task has groups if each of its examples carries the feature `group`, int32 [1]: the number of its group, counted from
1. The names of the groups travel with the feature, so that whoever has the task or mixture has them. In a row of the
batch every token gets the number of its example's group, also where examples of several groups are packed into it.
"""

from collections.abc import Mapping, Sequence

from switch_jax.data.quiet_tensorflow import seqio, tf

GROUP = 'group'


class GroupNames(seqio.PassThroughVocabulary):
  """The names of a task's groups, as the vocabulary of its feature `group`: number i + 1 is the i-th name."""

  def __init__(self, names: Sequence[str]):
    super().__init__(size=len(names) + 1)
    self.names = tuple(names)

  def __eq__(self, other: object) -> bool:
    """Whether both have the same names; the tasks of a mixture must agree."""
    return isinstance(other, GroupNames) and self.names == other.names

  __hash__ = None  # type: ignore[assignment]  # Python's own way of saying that there is none


def group_feature(names: Sequence[str]) -> dict[str, seqio.Feature]:
  """Returns the feature that a task with these groups has beside its inputs and targets."""
  return {GROUP: seqio.Feature(GroupNames(names), add_eos=False, dtype=tf.int32)}


def group_names(provider: seqio.Task | seqio.Mixture) -> tuple[str, ...]:
  """Returns the names of a task's or mixture's groups; none if it has no groups."""
  feature = provider.output_features.get(GROUP)
  return feature.vocabulary.names if feature and isinstance(feature.vocabulary, GroupNames) else ()


class GroupedConverter(seqio.EncDecFeatureConverter):
  """SeqIO's converter for encoder-decoders, which also gives every token of a row the number of its group.

  The batch has two more features, `encoder_group_ids` and `decoder_group_ids`, int32, 0 where there is padding.
  """

  TASK_FEATURES = seqio.EncDecFeatureConverter.TASK_FEATURES | {
    GROUP: seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
  }
  MODEL_FEATURES = seqio.EncDecFeatureConverter.MODEL_FEATURES | {
    f'{side}_group_ids': seqio.FeatureConverter.FeatureSpec(dtype=tf.int32) for side in ('encoder', 'decoder')
  }

  def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
    result = dict(super()._convert_example(features))
    # An example has one number, so the packed feature holds that of segment s at s - 1.
    numbers = tf.concat([[0], features[GROUP]], axis=0)
    for side, tokens in (('encoder', 'inputs'), ('decoder', 'targets')):
      segments = features[f'{tokens}_segment_ids'] if self.pack else tf.cast(features[tokens] != 0, tf.int32)
      result[f'{side}_group_ids'] = tf.gather(numbers, segments)
    return result

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
    """Returns the lengths of the batch's features."""
    lengths = {
      'encoder_group_ids': task_feature_lengths['inputs'],
      'decoder_group_ids': task_feature_lengths['targets'],
    }
    return {**super().get_model_feature_lengths(task_feature_lengths), **lengths}


def to_grouped_rows(dataset: tf.data.Dataset, feature_lengths: Mapping[str, int], pack: bool) -> tf.data.Dataset:
  """Packs, or else pads, examples with a `group` into rows; see `GroupedConverter`."""
  # A row never holds more examples than tokens, so this length of the numbers ends no row early.
  lengths = {**feature_lengths, GROUP: min(feature_lengths.values())}
  return GroupedConverter(pack=pack)(dataset, task_feature_lengths=lengths)
