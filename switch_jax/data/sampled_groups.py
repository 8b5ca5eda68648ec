"""Span corruption of stretches drawn from groups of texts (languages): one source for all, as a function of an index.

Training example i is drawn from (seed, i) alone: its group with a probability proportional to the group's size to a
power (0.3 in mT5), then where in the group's stream of tokens its stretch begins, then the spans that are masked. So a
hundred languages need no hundred pipelines to be built and buffered, a position is a number, and the streams of several
hosts are the examples i, i + n, i + 2 n, ... of the same draw. A stretch fills a row, and no row has two groups.

Held out are all stretches of a group one after the other, each masked once. A group that has then fewer than
`held_out_tokens` target tokens is gone over up to `MAX_PASSES` times, each from another offset and with other masks; a
group that has more is cut off there. The first stretches of all groups come first, then all second ones, so any number
of batches has something of each. The split `train_sample` is the training text treated the same way, to measure the gap
between the two.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from switch_jax.config import ConfigError
from switch_jax.data.corpus import TRAIN, VALIDATION
from switch_jax.data.groups import GROUP, group_feature
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.span_corruption import check_sentinels, corrupt, corrupted_lengths, count_noise, find_raw_length
from switch_jax.data.token_streams import TokenStreams

TRAIN_SAMPLE = 'train_sample'
# Raise this when code here changes which stretches are drawn.
VERSION = 1
SAMPLING_EXPONENT = 0.3
# Target tokens of a group on which its loss is well known, and few enough for a hundred groups in one evaluation.
HELD_OUT_TOKENS = 5_000
MAX_PASSES = 3
# Examples of an epoch, which nobody will see the end of.
_ENDLESS = 2**40

_plain = tf.autograph.experimental.do_not_convert


def sampling_probabilities(sizes: Sequence[int] | np.ndarray, exponent: float) -> np.ndarray:
  """Returns the probability of each group, proportional to its size to a power; float64 [groups].

  Args:
    sizes: at least 1 each.
    exponent: 1 draws in proportion to the sizes, 0 draws all groups alike.
  """
  weights = np.asarray(sizes, np.float64) ** exponent
  return weights / weights.sum()


def evaluation_stretches(lengths: np.ndarray, raw_length: int, target_tokens: int) -> np.ndarray:
  """Returns the stretches of the held-out split in their order, int64 [stretches, 3]: group, first token, length.

  Args:
    lengths: tokens of each group.
    raw_length: tokens of a stretch; the last one of a group may be shorter.
    target_tokens: as soon as a group has so many it is done; it may have fewer.
  """
  stretches = []
  for group, length in enumerate(lengths):
    found, turn = 0, 0
    for number in range(MAX_PASSES):
      # Later passes begin within the first stretch, so that their stretches are others.
      offset = number * raw_length // MAX_PASSES if length > raw_length else 0
      for start in range(offset, length, raw_length):
        size = min(raw_length, length - start)
        if found >= target_tokens or size < 2:
          break
        found += corrupted_lengths(size)[1]
        stretches.append((turn, group, start, size))
        turn += 1
  return np.array(sorted(stretches), np.int64).reshape(-1, 4)[:, 1:]


class SampledGroups(seqio.DataSource):
  """Stretches of tokens: endless draws for training, a fixed list for evaluation.

  Examples have `targets`, int32 [at most raw_length]; `group`, int32 [1], counted from 1; and `seed`, int64 [2], which
  is that of no other example.
  """

  def __init__(
    self,
    train: TokenStreams,
    held_out: TokenStreams,
    *,
    raw_length: int,
    exponent: float = SAMPLING_EXPONENT,
    held_out_tokens: int = HELD_OUT_TOKENS,
  ):
    """Keeps the tokens.

    Args:
      train, held_out: of the same groups.
      raw_length: tokens of a stretch.
      exponent: of the sizes in bytes.
      held_out_tokens: target tokens of a group that are enough.
    """
    self._streams = {TRAIN: train, VALIDATION: held_out, TRAIN_SAMPLE: train}
    self._raw_length, self._held_out_tokens = raw_length, held_out_tokens
    self.probabilities = sampling_probabilities(train.num_bytes, exponent)
    super().__init__(splits=list(self._streams), caching_permitted=False)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """SeqIO cuts the examples into shards."""
    return False

  def list_shards(self, split: str) -> Sequence[str]:
    """Returns one name: there are no files."""
    return [split]

  def num_input_examples(self, split: str) -> int:
    """Returns the number of stretches."""
    return _ENDLESS if split == TRAIN else len(self._list(split))

  def _list(self, split: str) -> np.ndarray:
    return evaluation_stretches(self._streams[split].lengths, self._raw_length, self._held_out_tokens)

  def get_dataset(
    self, split: str = TRAIN, shuffle: bool = True, seed: int | None = None, shard_info: seqio.ShardInfo | None = None
  ) -> tf.data.Dataset:
    """Returns the examples of a split; `shuffle` changes nothing, since draws are in no order to begin with."""
    del shuffle
    if shard_info is not None and shard_info.num_shards > 1:
      raise ValueError('the examples are cut into shards, not the source')
    streams, seed = self._streams[split], 0 if seed is None else seed
    tokens, starts = tf.constant(streams.tokens), tf.constant(streams.starts)

    def example(group: tf.Tensor, start: tf.Tensor, length: tf.Tensor, number: tf.Tensor) -> dict[str, tf.Tensor]:
      first = starts[group] + start
      return {
        'targets': tf.cast(tokens[first : first + length], tf.int32),
        GROUP: tf.cast(group[tf.newaxis], tf.int32) + 1,
        'seed': tf.stack([tf.cast(seed, tf.int64), number]),
      }

    if split != TRAIN:
      rows = tf.data.Dataset.from_tensor_slices(self._list(split)).enumerate()
      return rows.map(_plain(lambda number, row: example(row[0], row[1], row[2], number)))

    own = tf.constant(~seed, tf.int64)
    cumulative = tf.constant(np.cumsum(self.probabilities)[:-1])
    lengths = tf.constant(streams.lengths)

    @_plain
    def draw(number: tf.Tensor) -> dict[str, tf.Tensor]:
      # The seeds of the masks are split from (seed, number) too, into other ones than this.
      which, where = tf.unstack(tf.random.stateless_uniform([2], tf.stack([own, number]), dtype=tf.float64))
      group = tf.searchsorted(cumulative, which[tf.newaxis], side='right', out_type=tf.int64)[0]
      length = tf.minimum(lengths[group], self._raw_length)
      places = lengths[group] - length + 1
      start = tf.minimum(tf.cast(where * tf.cast(places, tf.float64), tf.int64), places - 1)
      return example(group, start, length, number)

    return tf.data.Dataset.range(_ENDLESS).map(draw, num_parallel_calls=tf.data.AUTOTUNE)


def _corrupt_all(
  dataset: tf.data.Dataset,
  sequence_length: Mapping[str, int],
  output_features: Mapping[str, seqio.Feature],
  raw_length: int,
) -> tf.data.Dataset:
  """Masks every example by its own seed, and ends inputs and targets with EOS."""
  if find_raw_length(sequence_length) != raw_length:
    raise ConfigError(
      f'the lengths are {dict(sequence_length)}, and this task was registered for stretches of {raw_length} tokens; '
      'register it with the same feature_lengths.'
    )
  vocabulary = output_features['targets'].vocabulary
  check_sentinels(vocabulary, count_noise(raw_length)[1])
  eos = [vocabulary.eos_id]

  @_plain
  def denoise(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    seeds = tf.unstack(tf.random.split(example['seed'], 2))
    spans = corrupt(example['targets'], seeds, first_sentinel=vocabulary.vocab_size - 1)
    return {name: tf.concat([tokens, eos], axis=0) for name, tokens in spans.items()} | {GROUP: example[GROUP]}

  return dataset.map(denoise, num_parallel_calls=tf.data.AUTOTUNE)


def add_sampled_task(
  name: str,
  source: SampledGroups,
  vocabulary: seqio.Vocabulary,
  names: Sequence[str],
  feature_lengths: Mapping[str, int],
) -> None:
  """Registers span corruption of such a source, in place of an older task of that name.

  Args:
    name: in SeqIO's registry.
    source: of stretches that fill rows of `feature_lengths`.
    vocabulary: of the tokens.
    names: of the groups.
    feature_lengths: of the rows.
  """
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  features = {side: seqio.Feature(vocabulary, add_eos=True) for side in ('inputs', 'targets')}
  seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[functools.partial(_corrupt_all, raw_length=find_raw_length(feature_lengths))],
    output_features=features | group_feature(names),
    metric_fns=[],
  )
