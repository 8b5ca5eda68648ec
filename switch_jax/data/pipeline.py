"""The training data: endless global batches, made ahead on a thread, from a position that can be saved."""

import functools
import pathlib
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator

import jax
from etils import epath

from switch_jax.config import DataConfig
from switch_jax.data import providers
from switch_jax.data.features import describe_features
from switch_jax.data.layout import Batch, HostBatch, RowLayout
from switch_jax.data.position import Position, Snapshots
from switch_jax.data.prefetch import Prefetcher
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.data.streams import Streams, check_ids, explain_reading, make_stream, stream_seeds

# Batches between snapshots, at least. Dropping a batch when restoring takes 5 to 10 ms.
MIN_SNAPSHOT_PERIOD = 200
# Saving a row of the shuffle buffer takes about as long as making one (0.1 and 0.06 ms, rows of 32 bytes). With so many
# rows made for each one in the buffer a fifth of the thread's time goes into snapshots; every 200 batches it was half
# of it with 20,000 rows and batches of 96.
_ROWS_PER_BUFFERED_ROW = 5
# But restoring makes them again: not more than so many tokens of a stream, seconds.
_MOST_TOKENS = 4_000_000


def choose_snapshot_period(config: DataConfig) -> int:
  """Returns how many batches to make between two snapshots: the same on every host, whatever the machine."""
  if not config.shuffle:
    return MIN_SNAPSHOT_PERIOD
  rows = config.batch_size // config.num_data_shards  # of a stream, each of which has a buffer
  cheap = _ROWS_PER_BUFFERED_ROW * config.shuffle_buffer_size // rows
  soon_again = _MOST_TOKENS // (rows * sum(config.feature_lengths.values()))
  return max(MIN_SNAPSHOT_PERIOD, min(cheap, soon_again))


class _Producer:
  """Makes one batch after the other and takes the snapshots; once the prefetch thread runs, only that calls it."""

  def __init__(self, streams: Streams, layout: RowLayout, snapshots: Snapshots, period: int):
    self._streams = streams
    self._layout = layout
    self._snapshots = snapshots
    self._period = period
    self._made = 0  # batches the iterators have made
    self._drop_until = 0
    # Also the proof, before any training, that the position of this pipeline can be saved.
    snapshots.take(streams, 0)

  def restore(self, directory: epath.Path, position: Position) -> None:
    """Goes to a saved position; the batches between snapshot and position are dropped by the next call."""
    self._snapshots.adopt(directory, position.snapshot, self._streams, self._layout.streams)
    self._made, self._drop_until = position.snapshot, position.batches

  def replay(self, streams: Streams, batches: int) -> None:
    """Goes to the position after so many batches of streams at their beginning; the next call makes and drops them."""
    self._streams = streams
    self._snapshots.clear()
    self._snapshots.take(streams, 0)
    self._made, self._drop_until = 0, batches

  def __call__(self) -> Batch:
    """Returns the next global batch."""
    while self._made < self._drop_until:
      self._advance()
    return self._layout.to_global(self._advance())

  def _advance(self) -> dict[int, HostBatch]:
    batch = self._streams.next_batch()
    self._made += 1
    # Before the batch is handed on: whoever holds batch n finds the snapshot at n finished, on every host alike.
    if self._made % self._period == 0:
      self._snapshots.take(self._streams, self._made)
    return batch


class TrainingSource(Iterator[Batch]):
  """Endless global batches of a task or mixture.

  Iterating gives dictionaries of int32 global arrays laid out by `rows_sharding`: encoder_input_tokens,
  encoder_segment_ids, encoder_positions [batch_size, inputs length]; decoder_input_tokens, decoder_target_tokens,
  decoder_segment_ids, decoder_positions, decoder_loss_weights [batch_size, targets length]. Padding is token 0 in
  segment 0. Rows of a decoder-only model have inputs and targets one after the other in the features of the decoder,
  and decoder_causal_attention, which is 1 for the inputs; none of this of the encoder.

  Attributes:
    vocabulary: SeqIO's vocabulary of inputs and targets.
    vocabulary_size: its number of ids.
    features: what a checkpoint records of the task's features.
    fingerprint: everything that decides which rows come out.
    description: what the task says of its text, one line, or None.
    has_metrics: whether a target is right or wrong, which the metrics of a task say; span corruption has none.
    template: makes the inputs of a row of a table, or None.
    wait_seconds: seconds that `next` has waited so far.
  """

  def __init__(
    self,
    config: DataConfig,
    seed: int,
    rows_sharding: jax.sharding.Sharding,
    num_ids: int | None = None,
    snapshot_period: int | None = None,
    decoder_only: bool = False,
  ):
    """Builds the pipelines of this host's streams; the thread starts with `start`, or the first `next`.

    Args:
      config: which task, and how its examples become batches.
      seed: of the order and of the preprocessors.
      rows_sharding: of arrays [batch, length].
      num_ids: ids that the model has rows for; None is the size of the vocabulary.
      snapshot_period: batches between snapshots; how many may have to be dropped when restoring. None chooses it by
        what a snapshot costs.
      decoder_only: whether the model has no encoder.

    Raises:
      ConfigError: the task cannot be found or read, has no example, or does not divide over hosts and devices.
    """
    module = providers.import_task_module(config)
    provider = providers.find_provider(config, config.train_split)
    self.vocabulary: seqio.Vocabulary = provider.output_features['targets'].vocabulary
    self.vocabulary_size: int = self.vocabulary.vocab_size
    self.features = describe_features(provider, config.feature_lengths)
    self.fingerprint = providers.fingerprint(config, seed, module, provider, decoder_only)
    self.description = providers.describe_text(config, module)
    self.template = providers.inputs_template(config, module)
    self.has_metrics = any(task.metric_fns for task in seqio.get_subtasks(provider))
    self.wait_seconds = 0.0
    self._layout = RowLayout.of(config, rows_sharding)
    held, seeds = self._layout.streams, stream_seeds(provider, config, seed)
    num_ids = num_ids or self.vocabulary_size
    # A data set that was iterated over before would be in another order.
    self._make_streams = lambda: Streams(
      {s: make_stream(provider, config, s, seeds[s], len(held), decoder_only) for s in held},
      functools.partial(explain_reading, provider, config, config.train_split),
      functools.partial(check_ids, num_ids=num_ids, task=config.mixture_or_task_name),
    )
    folder = pathlib.Path(tempfile.mkdtemp(prefix='switch_jax_data_'))
    # Both run also when the source is dropped without `close`, and before the interpreter takes TensorFlow apart.
    self._remove_folder = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
    self._snapshots = Snapshots(folder, self._layout.owned_streams)
    period = snapshot_period or choose_snapshot_period(config)
    self._producer = _Producer(self._make_streams(), self._layout, self._snapshots, period)
    self._prefetch = config.prefetch
    self._handed_out = 0
    self._open_prefetcher()

  def _open_prefetcher(self) -> None:
    self._prefetcher = Prefetcher(self._producer, self._prefetch)
    self._stop_thread = weakref.finalize(self, self._prefetcher.close)

  def start(self) -> None:
    """Begins to make batches, so that the first are ready when compilation is; restore a position before."""
    self._prefetcher.start()

  def __next__(self) -> Batch:
    """Returns the next batch."""
    began = time.perf_counter()
    batch = self._prefetcher.next()
    self.wait_seconds += time.perf_counter() - began
    self._handed_out += 1
    self._snapshots.forget_before(self._handed_out)
    return batch

  def save_position(self, directory: epath.PathLike) -> None:
    """Writes the position after the batches handed out so far: `position.json` and two files for each stream.

    Every process calls it, at the same number of batches; each writes the streams it answers for.

    Args:
      directory: an existing folder that all hosts share.
    """
    directory = epath.Path(directory)
    position = Position(
      batches=self._handed_out,
      snapshot=self._snapshots.copy_latest(self._handed_out, directory),
      fingerprint=self.fingerprint,
      num_streams=self._layout.num_streams,
    )
    if jax.process_index() == 0:
      position.write(directory)

  def restore_position(self, directory: epath.PathLike) -> None:
    """Goes to a saved position, whatever number of hosts saved it; the next batch is the one that followed then.

    Raises:
      ConfigError: it belongs to other data.
      ValueError: it is damaged.
    """
    directory = epath.Path(directory)
    position = Position.read(directory)
    providers.check_fingerprint(position.fingerprint, self.fingerprint)
    self._stop_thread()
    if providers.has_other_iterators(position.fingerprint, self.fingerprint):
      self._producer.replay(self._make_streams(), position.batches)
    else:
      self._producer.restore(directory, position)
    self._handed_out = position.batches
    self._open_prefetcher()

  def close(self) -> None:
    """Stops the thread and removes the snapshots."""
    self._stop_thread()
    self._remove_folder()


def open_training(
  config: DataConfig,
  seed: int,
  rows_sharding: jax.sharding.Sharding,
  num_ids: int | None = None,
  decoder_only: bool = False,
) -> TrainingSource:
  """Opens the training data of a configuration; see `TrainingSource`."""
  return TrainingSource(config, seed, rows_sharding, num_ids, decoder_only=decoder_only)
