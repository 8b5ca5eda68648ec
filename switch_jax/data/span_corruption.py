"""T5's span corruption as SeqIO preprocessors (Raffel et al. 2020, section 3.1.4; Switch Transformers, section 2).

15 % of the tokens are masked in spans of mean length 3. In the inputs one sentinel stands for each span; the targets
are, span by span, the sentinel and the tokens it stands for. Sentinels count down from the top of the vocabulary:

    text     Thank you for inviting me to your party last week
    inputs   Thank you <s0> me to your party <s1> week </s>
    targets  <s0> for inviting <s1> last </s>

Documents are joined and cut to the raw length that fills the rows (568 tokens make 512 inputs and 114 targets, EOS
included). A sequence begins with a kept span and ends with a masked one, as T5's. All randomness is in stateless
operations on seeds that come with each example, so an iterator's position can be saved and a seed fixes the stream.
"""

import functools
from collections.abc import Mapping

from switch_jax.config import ConfigError
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.sentinels import HuggingFaceByteVocabulary, sentinel_ids

NOISE_DENSITY = 0.15
MEAN_SPAN_LENGTH = 3.0
# As T5: a longer document gives one random stretch of this many tokens, and this many documents are joined at a time.
MAX_DOCUMENT_TOKENS = 65536
DOCUMENTS_JOINED = 128


def count_noise(
  raw_length: int, noise_density: float = NOISE_DENSITY, mean_span_length: float = MEAN_SPAN_LENGTH
) -> tuple[int, int]:
  """Returns how many tokens of a sequence are masked, and in how many spans.

  Args:
    raw_length: tokens before corruption, at least 2.
    noise_density: fraction of the tokens to mask.
    mean_span_length: tokens of a masked span, on average.

  Returns:
    (masked tokens, spans). At least one token is masked and one kept, and no span, masked or kept, is empty.
  """
  masked = min(max(round(raw_length * noise_density), 1), raw_length - 1)
  spans = min(max(round(masked / mean_span_length), 1), masked, raw_length - masked)
  return masked, spans


def corrupted_lengths(
  raw_length: int, noise_density: float = NOISE_DENSITY, mean_span_length: float = MEAN_SPAN_LENGTH
) -> tuple[int, int]:
  """Returns the lengths (inputs, targets), each with its sentinels and EOS, that `raw_length` tokens become."""
  masked, spans = count_noise(raw_length, noise_density, mean_span_length)
  return raw_length - masked + spans + 1, masked + spans + 1


def find_raw_length(
  sequence_length: Mapping[str, int],
  noise_density: float = NOISE_DENSITY,
  mean_span_length: float = MEAN_SPAN_LENGTH,
) -> int:
  """Returns how many raw tokens fill a row: the most whose inputs and targets both fit.

  Args:
    sequence_length: tokens of `inputs` and `targets`, with EOS.
    noise_density: fraction of the tokens to mask.
    mean_span_length: tokens of a masked span, on average.

  Returns:
    Tokens before corruption; 568 for 512 inputs and 114 targets.

  Raises:
    ConfigError: not even two tokens fit.
  """

  def fits(raw_length: int) -> bool:
    inputs, targets = corrupted_lengths(raw_length, noise_density, mean_span_length)
    return inputs <= sequence_length['inputs'] and targets <= sequence_length['targets']

  if not fits(2):
    raise ConfigError(
      f'feature_lengths is {dict(sequence_length)}; the shortest span corruption has 3 inputs and 3 targets (a '
      'token, a sentinel, EOS); use longer ones, such as inputs 512 and targets 114.'
    )
  raw_length = 2
  while fits(raw_length + 1):  # both lengths never shrink as the raw length grows
    raw_length += 1
  return raw_length


def check_sentinels(vocabulary: seqio.Vocabulary, spans: int) -> None:
  """Raises unless the vocabulary has a sentinel for every span; beyond them lie the ids of ordinary tokens."""
  if isinstance(vocabulary, HuggingFaceByteVocabulary):
    raise ConfigError(
      "VOCABULARY 'byt5_huggingface' counts its sentinels upwards, and span corruption counts them down from the "
      "highest id; use 'byt5', or 'bytes'."
    )
  # A vocabulary without extra ids keeps its sentinels, if any, among its pieces (as mT5's): nothing to count. ByT5's
  # are the bytes that occur in no text.
  known = vocabulary.extra_ids or len(sentinel_ids(vocabulary))
  if known and spans > known:
    raise ConfigError(
      f'feature_lengths need {spans} sentinels in a sequence; the vocabulary has {known} extra ids; '
      'use shorter sequences or a vocabulary with more extra ids.'
    )


@seqio.map_over_dataset(num_seeds=1)
def choose_random_chunk(
  example: Mapping[str, tf.Tensor], seed: tf.Tensor, max_length: int = MAX_DOCUMENT_TOKENS
) -> dict[str, tf.Tensor]:
  """Cuts a long document at every `max_length` tokens and keeps one of the pieces, each as likely."""
  tokens = example['targets']
  num_chunks = tf.maximum(1, -(-tf.size(tokens) // max_length))
  start = max_length * tf.random.stateless_uniform([], seed, maxval=num_chunks, dtype=tf.int32)
  return {'targets': tokens[start : start + max_length]}


def join_documents(dataset: tf.data.Dataset, num_documents: int = DOCUMENTS_JOINED) -> tf.data.Dataset:
  """Joins the tokens of each `num_documents` documents into one; no EOS between them, as T5."""
  joined = dataset.ragged_batch(num_documents)
  return joined.map(lambda batch: {'targets': batch['targets'].flat_values}, num_parallel_calls=tf.data.AUTOTUNE)


def split_tokens(dataset: tf.data.Dataset, length: int) -> tf.data.Dataset:
  """Cuts every document into sequences of `length` tokens; a shorter last one stays, unless it is a single token."""

  def pieces(example: Mapping[str, tf.Tensor]) -> tf.data.Dataset:
    tokens = example['targets']
    starts = tf.data.Dataset.range(0, tf.size(tokens, out_type=tf.int64), length)
    return starts.map(lambda start: {'targets': tokens[start : start + length]})

  return dataset.flat_map(pieces).filter(lambda example: tf.size(example['targets']) > 1)


def random_partition(total: tf.Tensor, parts: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Returns the lengths of `parts` non-empty runs that add up to `total`; every such choice is as likely.

  Args:
    total: int32 scalar, at least `parts`.
    parts: int32 scalar, at least 1.
    seed: int [2], the seed of a stateless operation.

  Returns:
    int32 [parts].
  """
  # The parts - 1 largest of total - 1 random numbers mark where a new run begins.
  _, cuts = tf.math.top_k(tf.random.stateless_uniform([total - 1], seed), k=parts - 1, sorted=False)
  bounds = tf.concat([[0], tf.sort(cuts) + 1, [total]], axis=0)
  return bounds[1:] - bounds[:-1]


def corrupt(
  tokens: tf.Tensor,
  seeds: tuple[tf.Tensor, tf.Tensor],
  first_sentinel: int,
  noise_density: float = NOISE_DENSITY,
  mean_span_length: float = MEAN_SPAN_LENGTH,
) -> dict[str, tf.Tensor]:
  """Masks random spans of one sequence.

  Args:
    tokens: int32 [raw length], at least 2 tokens.
    seeds: two seeds, each int [2]; of the masked and of the kept spans.
    first_sentinel: id of the first span's sentinel; the next span has the next lower id.
    noise_density: fraction of the tokens to mask.
    mean_span_length: tokens of a masked span, on average.

  Returns:
    `inputs` and `targets`, int32 vectors without EOS.
  """
  length = tf.size(tokens)
  # The same rounding as `count_noise`, which is why in double precision.
  exact = tf.cast(length, tf.float64)
  masked = tf.clip_by_value(tf.cast(tf.round(exact * noise_density), tf.int32), 1, length - 1)
  spans = tf.cast(tf.round(tf.cast(masked, tf.float64) / mean_span_length), tf.int32)
  spans = tf.minimum(tf.maximum(spans, 1), tf.minimum(masked, length - masked))

  masked_lengths = random_partition(masked, spans, seeds[0])
  kept_lengths = random_partition(length - masked, spans, seeds[1])
  run_lengths = tf.reshape(tf.stack([kept_lengths, masked_lengths], axis=1), [-1])  # kept, masked, kept, ...
  runs = tf.RaggedTensor.from_row_lengths(tokens, run_lengths)
  sentinels = (first_sentinel - tf.range(spans))[:, tf.newaxis]  # [spans, 1]
  inputs = tf.concat([runs[::2], sentinels], axis=1).flat_values
  targets = tf.concat([sentinels, runs[1::2]], axis=1).flat_values
  return {'inputs': tf.ensure_shape(inputs, [None]), 'targets': tf.ensure_shape(targets, [None])}


def span_corruption(
  dataset: tf.data.Dataset,
  sequence_length: Mapping[str, int],
  output_features: Mapping[str, seqio.Feature],
  noise_density: float = NOISE_DENSITY,
  mean_span_length: float = MEAN_SPAN_LENGTH,
) -> tf.data.Dataset:
  """The whole objective: documents of tokens to (inputs, targets); `seqio.preprocessors.append_eos` comes after it.

  Args:
    dataset: examples with `targets`, int32 [tokens].
    sequence_length: tokens of `inputs` and `targets` in a row, with the EOS that is still to come.
    output_features: their vocabularies give the sentinels, from the highest id down.
    noise_density: fraction of the tokens to mask.
    mean_span_length: tokens of a masked span, on average.

  Returns:
    Examples with `inputs` and `targets`, int32 vectors one shorter than the rows, or less at the end of the documents
    that were joined.

  Raises:
    ConfigError: the lengths are too short, or need more sentinels than the vocabulary has.
  """
  raw_length = find_raw_length(sequence_length, noise_density, mean_span_length)
  vocabulary = output_features['targets'].vocabulary
  check_sentinels(vocabulary, count_noise(raw_length, noise_density, mean_span_length)[1])
  denoise = functools.partial(
    corrupt,
    first_sentinel=vocabulary.vocab_size - 1,
    noise_density=noise_density,
    mean_span_length=mean_span_length,
  )
  dataset = dataset.map(lambda example: {'targets': tf.cast(example['targets'], tf.int32)})
  dataset = choose_random_chunk(dataset)
  dataset = join_documents(dataset)
  dataset = split_tokens(dataset, raw_length)
  return seqio.map_over_dataset(lambda example, seeds: denoise(example['targets'], seeds), num_seeds=2)(dataset)
