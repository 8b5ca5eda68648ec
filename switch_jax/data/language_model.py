"""Language modelling: all of a text is the target, in stretches that fill a row, for models without an encoder."""

from collections.abc import Mapping

from switch_jax.config import ConfigError
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.span_corruption import choose_random_chunk, join_documents


def language_model(
  dataset: tf.data.Dataset, sequence_length: Mapping[str, int], output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
  """Makes targets of documents, as T5's `full_lm`: EOS at the end of each, joined, and cut into rows.

  All rows of some documents are made at once: an operation a row costs more than what tiny models do with it.

  Args:
    dataset: examples with `targets`, int32 [tokens].
    sequence_length: tokens of `targets` in a row.
    output_features: says whether documents end with EOS.

  Returns:
    Examples with `targets`, int32 [length]; what is left at the end of the joined documents is shorter.

  Raises:
    ConfigError: the lengths are not those of targets alone, or too short.
  """
  length = sequence_length['targets']
  if length < 2 or 'inputs' in sequence_length:
    raise ConfigError(
      f'feature_lengths is {dict(sequence_length)}; a language model has targets alone, at least 2 of them, such as '
      "{'targets': 512}."
    )
  feature = output_features['targets']

  def with_eos(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    tokens = tf.cast(example['targets'], tf.int32)
    return {'targets': tf.pad(tokens, [[0, 1]], constant_values=feature.vocabulary.eos_id)}

  def rows(example: Mapping[str, tf.Tensor]) -> tf.data.Dataset:
    tokens = example['targets']
    whole = tf.size(tokens) // length * length
    full = tf.data.Dataset.from_tensor_slices({'targets': tf.reshape(tokens[:whole], [-1, length])})
    rest = tf.data.Dataset.from_tensors({'targets': tokens[whole:]})
    return full.concatenate(rest.take(tf.cast(tf.size(tokens) > whole, tf.int64)))

  dataset = choose_random_chunk(dataset)
  return join_documents(dataset.map(with_eos) if feature.add_eos else dataset).flat_map(rows)
