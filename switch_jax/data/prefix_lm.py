"""T5's prefix language modelling: the beginning of a stretch of text is the input, the rest the target.

A stretch has one token less than the inputs' length and is cut at a place of which each is as likely. As T5's, a target
that is longer than its length loses its end when EOS is appended; with targets as long as the inputs none is.

`continuation` always cuts at the same place, so that all rows are full without packing.
"""

from collections.abc import Mapping

from switch_jax.config import ConfigError
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.span_corruption import choose_random_chunk, join_documents, split_tokens


def prefix_lm(
  dataset: tf.data.Dataset, sequence_length: Mapping[str, int], output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
  """Makes inputs and targets of documents; `seqio.preprocessors.append_eos_after_trim` comes after it.

  Args:
    dataset: examples with `targets`, int32 [tokens].
    sequence_length: tokens of `inputs` and `targets` in a row, with the EOS that is still to come.
    output_features: not used; SeqIO passes them.

  Returns:
    Examples with `inputs` and `targets`, int32 vectors of at least one token that together are a stretch of a document.

  Raises:
    ConfigError: the inputs are too short.
  """
  del output_features
  length = sequence_length['inputs'] - 1
  if length < 2:
    raise ConfigError(
      f'feature_lengths is {dict(sequence_length)}; a prefix language model needs a token on either side and EOS; use '
      "at least 3 inputs, such as {'inputs': 512, 'targets': 512}."
    )

  @seqio.map_over_dataset(num_seeds=1)
  def cut(example: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
    tokens = example['targets']
    place = tf.random.stateless_uniform([], seed, minval=1, maxval=tf.size(tokens), dtype=tf.int32)
    return {'inputs': tokens[:place], 'targets': tokens[place:]}

  dataset = dataset.map(lambda example: {'targets': tf.cast(example['targets'], tf.int32)})
  return cut(split_tokens(choose_random_chunk(dataset), length))


def continuation(
  dataset: tf.data.Dataset, sequence_length: Mapping[str, int], output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
  """Makes inputs of a fixed number of tokens, and targets of those that follow them; with EOS.

  Documents are joined and cut into stretches that fill a row of inputs and one of targets. What is left at the end of
  the joined documents is a shorter target, or is left out if it has no more than the inputs. All rows of some documents
  are made at once: an operation a row costs more than what tiny models do with it.
  """
  inputs, targets = (sequence_length[name] - 1 for name in ('inputs', 'targets'))
  if inputs < 1 or targets < 1:
    raise ConfigError(
      f'feature_lengths is {dict(sequence_length)}; a continuation needs a token on either side and EOS; use at least '
      "2 of each, such as {'inputs': 16, 'targets': 48}."
    )
  dataset = dataset.map(lambda example: {'targets': tf.cast(example['targets'], tf.int32)})

  def with_eos(rows: tf.Tensor) -> dict[str, tf.Tensor]:
    parts = {'inputs': rows[:, :inputs], 'targets': rows[:, inputs:]}
    for name, part in parts.items():
      if output_features[name].add_eos:
        parts[name] = tf.pad(part, [[0, 0], [0, 1]], constant_values=output_features[name].vocabulary.eos_id)
    return parts

  def rows(example: Mapping[str, tf.Tensor]) -> tf.data.Dataset:
    tokens = example['targets']
    whole = tf.size(tokens) // (inputs + targets) * (inputs + targets)
    full = tf.data.Dataset.from_tensor_slices(with_eos(tf.reshape(tokens[:whole], [-1, inputs + targets])))
    rest = tf.data.Dataset.from_tensor_slices(with_eos(tokens[tf.newaxis, whole:]))
    return full.concatenate(rest.take(tf.cast(tf.size(tokens) - whole > inputs, tf.int64)))

  return join_documents(choose_random_chunk(dataset)).flat_map(rows)
