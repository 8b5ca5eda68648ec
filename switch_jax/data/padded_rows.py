"""Rows of one example each, padded: all rows of a batch at once, which costs a third of one row after another."""

from collections.abc import Mapping
from typing import Any

from switch_jax.config import DataConfig
from switch_jax.data.quiet_tensorflow import seqio, tf


class FittingTask(seqio.Task):
  """A task whose preprocessors make no example longer than the feature lengths, so that none has to be cut.

  SeqIO cuts one example after the other, which takes a third of the time of making rows as short as 32 bytes.
  """


def examples_fit(provider: seqio.Task | seqio.Mixture) -> bool:
  """Whether no example of a task, or of the tasks of a mixture, is longer than the feature lengths."""
  return all(isinstance(task, FittingTask) for task in seqio.get_subtasks(provider))


def are_left_whole(provider: seqio.Task | seqio.Mixture, config: DataConfig, decoder_only: bool) -> bool:
  """Whether training rows are made without cutting examples; what decides it decides which iterators a position has."""
  return not (config.pack or decoder_only) and examples_fit(provider)


def are_token_pairs(element_spec: Mapping[str, Any], feature_lengths: Mapping[str, int]) -> bool:
  """Whether examples are the `inputs` and `targets` of an encoder-decoder, int32 vectors, with what else they have."""

  def is_vector(name: str) -> bool:
    spec = element_spec.get(name)
    return isinstance(spec, tf.TensorSpec) and spec.dtype == tf.int32 and spec.shape.rank == 1

  return set(feature_lengths) == {'inputs', 'targets'} and all(map(is_vector, feature_lengths))


def to_padded_batches(
  dataset: tf.data.Dataset, feature_lengths: Mapping[str, int], rows: int, *, drop_remainder: bool
) -> tf.data.Dataset:
  """Returns batches of padded rows, equal to those of `seqio.EncDecFeatureConverter(pack=False)`.

  Args:
    dataset: examples of which `are_token_pairs` holds, no longer than the lengths: SeqIO trims them, or they fit.
    feature_lengths: tokens of `inputs` and `targets` in a row.
    rows: of a batch.
    drop_remainder: leave out a last batch of fewer rows.

  Returns:
    Dictionaries of int32 [rows, length]: `encoder_input_tokens`, `decoder_target_tokens`, `decoder_input_tokens` (the
    targets one place later, after 0) and `decoder_loss_weights` (1 where a target is not 0).
  """

  def to_features(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    targets = batch['targets']
    return {
      'encoder_input_tokens': batch['inputs'],
      'decoder_target_tokens': targets,
      'decoder_input_tokens': tf.pad(targets[:, :-1], [[0, 0], [1, 0]]),
      'decoder_loss_weights': tf.cast(tf.not_equal(targets, 0), tf.int32),
    }

  shapes = {name: [length] for name, length in feature_lengths.items()}
  if set(dataset.element_spec) != set(shapes):
    dataset = dataset.map(lambda example: {name: example[name] for name in shapes})
  return dataset.padded_batch(rows, shapes, drop_remainder=drop_remainder).map(to_features)
