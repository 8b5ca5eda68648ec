"""The logical streams of the training data: each shuffled, packed, and repeated alone, each with a position."""

import contextlib
import copy
import functools
import hashlib
import pathlib
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data.groups import GROUP, to_grouped_rows
from switch_jax.data.layout import HostBatch
from switch_jax.data.padded_rows import are_left_whole, are_token_pairs, to_padded_batches
from switch_jax.data.quiet_tensorflow import num_threads, seqio, tf
from switch_jax.data.task_errors import OF_USERS, explain, reading_error


def add_missing_features(batch: HostBatch) -> HostBatch:
  """Returns a batch with segment ids and positions, which SeqIO leaves out when it does not pack.

  Args:
    batch: int32 [rows, length] each; without packing a row is one example, then zeros.
  """
  result = dict(batch)
  for side, tokens in (('encoder', 'encoder_input_tokens'), ('decoder', 'decoder_target_tokens')):
    if tokens not in batch:
      continue
    real = (batch[tokens] != 0).astype(np.int32)
    result.setdefault(f'{side}_segment_ids', real)
    result.setdefault(f'{side}_positions', np.arange(real.shape[1], dtype=np.int32) * real)
  return result


def check_ids(batches: Iterable[HostBatch], num_ids: int, task: str) -> None:
  """Raises a `ConfigError` where a token is none of the ids that the model has rows for: its loss would be NaN."""
  for batch in batches:
    for side, name in (('inputs', 'encoder_input_tokens'), ('targets', 'decoder_target_tokens')):
      if name not in batch:
        continue
      for token in (batch[name].min(initial=0), batch[name].max(initial=0)):
        if not 0 <= token < num_ids:
          raise ConfigError(
            f'{task} gives the token {token} among the {side}; the ids are 0 to {num_ids - 1}. '
            'See to its preprocessors after the tokenizer, or use a larger ModelConfig.vocab_size.'
          )


def bounded_options(num_pipelines: int = 1) -> tf.data.Options:
  """Returns options that keep a pipeline deterministic, its position exact, and its threads (and examples) few."""
  options = tf.data.Options()
  options.deterministic = True
  options.experimental_symbolic_checkpoint = False  # with a shuffle it would save a wrong position without a word
  options.threading.private_threadpool_size = max(1, num_threads() // num_pipelines)
  options.autotune.cpu_budget = max(1, num_threads() // num_pipelines)
  return options


def _with_shuffle_buffer(provider: seqio.Task | seqio.Mixture, size: int) -> seqio.Task | seqio.Mixture:
  """Returns a task or mixture whose `get_dataset` shuffles with this buffer, which a mixture has no argument for."""
  if isinstance(provider, seqio.Task):
    provider = copy.copy(provider)
    provider.get_dataset = functools.partial(provider.get_dataset, shuffle_buffer_size=size)
    return provider
  mixture = copy.copy(provider)

  def get_task_dataset(task: seqio.Task, *args: Any, **kwargs: Any) -> tf.data.Dataset:
    shuffled = types.SimpleNamespace(get_dataset=functools.partial(task.get_dataset, shuffle_buffer_size=size))
    return provider.get_task_dataset(shuffled, *args, **kwargs)

  mixture.get_task_dataset = get_task_dataset
  return mixture


def _shards_are_files(provider: seqio.Task | seqio.Mixture, config: DataConfig) -> bool:
  """Returns whether every task gives each stream files of its own."""
  return not config.use_cached_tasks and all(
    isinstance(task.source, seqio.FileDataSource | seqio.TfdsDataSource)
    and len(task.source.list_shards(config.train_split)) >= config.num_data_shards
    for task in seqio.get_subtasks(provider)
  )


def stream_seeds(provider: seqio.Task | seqio.Mixture, config: DataConfig, seed: int) -> list[int]:
  """Returns a seed for each stream.

  Streams of different files have different seeds, so that their masks and orders are unrelated. Where SeqIO shards the
  examples instead, all streams must see the examples in one order, which takes one seed.
  """

  def mix(stream: int) -> int:
    return int.from_bytes(hashlib.sha256(f'{seed} {stream}'.encode()).digest()[:4], 'big') >> 1

  if _shards_are_files(provider, config):
    return [mix(stream) for stream in range(config.num_data_shards)]
  return [mix(0)] * config.num_data_shards


def _check_tasks(provider: seqio.Task | seqio.Mixture, config: DataConfig, read: Mapping[str, Any]) -> None:
  """Reads the first example of every task with these arguments of `get_dataset`.

  Raises:
    ConfigError: there is none (repeating none would never end), or the position after it cannot be saved.
  """
  split, shard = read['split'], read['shard_info']
  for task in seqio.get_subtasks(provider):
    if split not in task.splits:
      continue  # SeqIO leaves it out of the mixture
    with reading(config, task.name):
      examples = iter(task.get_dataset(**read, shuffle=False, num_epochs=1).with_options(bounded_options()))
      is_empty = next(examples, None) is None
    if is_empty:
      raise no_example(task.name, split, shard)
    with tempfile.TemporaryDirectory() as folder:
      _save_iterator(examples, pathlib.Path(folder) / 'position', f' ({task.name})')


def no_example(name: str, split: str, shard: seqio.ShardInfo | None = None) -> ConfigError:
  """Returns what to raise of a task without examples."""
  stream = f' for stream {shard.index} of {shard.num_shards}' if shard and shard.num_shards > 1 else ''
  remedy = ', or use fewer num_data_shards' if stream else ''
  return ConfigError(
    f'{name} has no example{stream} in its split {split!r}: the split is empty, or its preprocessors leave nothing '
    f'over; check its source and preprocessors{remedy}.'
  )


@contextlib.contextmanager
def reading(config: DataConfig, task: str | None = None) -> Iterator[None]:
  """Turns what is raised where a task is opened, by SeqIO or by the task's own code, into a `ConfigError`.

  Args:
    config: names the task or mixture.
    task: of a mixture, if it is known which one is read.
  """
  try:
    yield
  except ConfigError:
    raise
  except OF_USERS as error:
    which = 'which' if task in (None, config.mixture_or_task_name) else f'whose task {task}'
    raise ConfigError(
      f'DataConfig.mixture_or_task_name is {config.mixture_or_task_name!r}, {which} cannot be read as configured: '
      f'{explain(error)}. Check the task, feature_lengths, use_cached_tasks, shuffle, and pack.'
    ) from error


def with_named_errors(provider: seqio.Task | seqio.Mixture, config: DataConfig) -> seqio.Task | seqio.Mixture:
  """Returns a mixture whose `get_dataset` names the task that cannot be read or has no example; a task as it is."""
  if isinstance(provider, seqio.Task):
    return provider
  mixture = copy.copy(provider)

  def get_task_dataset(task: seqio.Task, keys: Any, lengths: Any, split: str, *args: Any) -> tf.data.Dataset:
    with reading(config, task.name):
      dataset = provider.get_task_dataset(task, keys, lengths, split, *args)
      is_empty = next(iter(dataset.with_options(bounded_options())), None) is None
    if is_empty:  # the mixture would end at once, or at random
      raise no_example(task.name, split)
    return dataset

  mixture.get_task_dataset = get_task_dataset
  return mixture


def to_rows(
  dataset: tf.data.Dataset, config: DataConfig, with_groups: bool = False, decoder_only: bool = False
) -> tf.data.Dataset:
  """Packs, or else pads, examples into rows of the configured lengths, with the features of the batch.

  Args:
    dataset: examples of a task or mixture.
    config: lengths, and whether to pack.
    with_groups: also give every token the number of its example's group; see `switch_jax.data.groups`.
    decoder_only: put inputs and targets into one row, for a model without an encoder; it has no groups.
  """
  if with_groups:
    return to_grouped_rows(dataset, config.feature_lengths, config.pack)
  if GROUP in dataset.element_spec:  # SeqIO would say at length that it leaves it out
    dataset = dataset.map(lambda example: {name: example[name] for name in config.feature_lengths})
  converter: seqio.FeatureConverter = seqio.EncDecFeatureConverter(pack=config.pack)
  if decoder_only:
    converter = seqio.DecoderFeatureConverter(loss_on_targets_only=config.loss_on_targets_only, pack=config.pack)
  return converter(dataset, task_feature_lengths=config.feature_lengths)


def to_batches(
  dataset: tf.data.Dataset,
  config: DataConfig,
  rows: int,
  *,
  with_groups: bool = False,
  decoder_only: bool = False,
  drop_remainder: bool = False,
) -> tf.data.Dataset:
  """Returns batches of so many rows (see `to_rows`); the last one may have fewer, unless that is dropped."""
  is_plain = not (config.pack or with_groups or decoder_only)
  if is_plain and are_token_pairs(dataset.element_spec, config.feature_lengths):
    return to_padded_batches(dataset, config.feature_lengths, rows, drop_remainder=drop_remainder)
  return to_rows(dataset, config, with_groups, decoder_only).batch(rows, drop_remainder=drop_remainder)


def make_stream(
  provider: seqio.Task | seqio.Mixture,
  config: DataConfig,
  stream: int,
  seed: int,
  num_pipelines: int,
  decoder_only: bool = False,
) -> tf.data.Dataset:
  """Returns the endless dataset of one stream.

  Args:
    provider: the task or mixture.
    config: lengths, batch, and how it is shuffled and packed.
    stream: its number, below `config.num_data_shards`.
    seed: of its order and of its preprocessors.
    num_pipelines: streams that share this host's cores.
    decoder_only: see `to_rows`.

  Returns:
    Batches of the stream's rows: a dict of int32 [batch_size / num_data_shards, length].

  Raises:
    ConfigError: the stream has no example, or the task cannot be read this way.
  """
  shard = seqio.ShardInfo(index=stream, num_shards=config.num_data_shards)
  read = {
    'sequence_length': config.feature_lengths,
    'split': config.train_split,
    'use_cached': config.use_cached_tasks,
    'seed': seed,
    'shard_info': shard,
    'try_in_mem_cache': False,  # the whole split would go into every saved position
    'trim_output_features': not are_left_whole(provider, config, decoder_only),
  }
  with reading(config):
    _check_tasks(provider, config, read)
    provider = _with_shuffle_buffer(provider, config.shuffle_buffer_size)
    dataset = provider.get_dataset(**read, shuffle=config.shuffle, num_epochs=None)
    rows = config.batch_size // config.num_data_shards
    dataset = to_batches(dataset, config, rows, decoder_only=decoder_only, drop_remainder=True)
  return dataset.with_options(bounded_options(num_pipelines))


def explain_reading(
  provider: seqio.Task | seqio.Mixture, config: DataConfig, split: str, error: BaseException
) -> ConfigError:
  """Returns the error to raise where iterating over the examples of a task or mixture failed; it names the task."""

  def read(task: seqio.Task) -> tf.data.Dataset:
    dataset = task.get_dataset(
      config.feature_lengths, split=split, use_cached=config.use_cached_tasks, shuffle=False, seed=0, num_epochs=1
    )
    return dataset.with_options(bounded_options())

  return reading_error(provider, split, read, error)


def _save_iterator(iterator: Iterator, path: pathlib.Path, name: str = '') -> None:
  """Writes the position of a dataset's iterator; `name` is of the task, in brackets, if it is known.

  Raises:
    ConfigError: the pipeline has an operation whose state cannot be saved.
  """
  try:
    tf.train.Checkpoint(iterator=iterator).write(str(path))
  except tf.errors.FailedPreconditionError as error:
    raise ConfigError(
      f'The position of this task cannot be saved{name}: {explain(error)}. Use sources without from_generator, '
      'py_function, or numpy_function, and in preprocessors tf.random.stateless_* with seeds from '
      'seqio.map_over_dataset.'
    ) from error


class Streams:
  """The streams of this host as iterators that advance together, and whose position can be saved."""

  def __init__(
    self,
    datasets: Mapping[int, tf.data.Dataset],
    explain: Callable[[Exception], ConfigError] | None = None,
    check: Callable[[Iterable[HostBatch]], None] | None = None,
  ):
    """Starts at the first batch of each stream.

    Args:
      datasets: for each stream, its endless dataset.
      explain: says which task raised an error; None lets errors pass.
      check: raises a `ConfigError` if the rows of the streams cannot be trained on.
    """
    self._datasets, self._explain, self._check = dict(datasets), explain, check
    self._iterators: dict[int, Iterator] = {stream: iter(dataset) for stream, dataset in datasets.items()}

  def next_batch(self) -> dict[int, HostBatch]:
    """Returns the next rows of each stream as NumPy arrays.

    Raises:
      ConfigError: a stream has ended, although it is repeated, or a task failed.
    """
    try:
      rows = {stream: next(iterator) for stream, iterator in self._iterators.items()}
    except StopIteration as error:
      raise ConfigError('The training data ended; no preprocessor of a task may limit its examples (take).') from error
    except tf.errors.OpError as error:
      if self._explain is None:
        raise
      raise self._explain(error) from error
    batches = {
      stream: add_missing_features({name: value.numpy() for name, value in batch.items()})
      for stream, batch in rows.items()
    }
    if self._check is not None:
      self._check(batches.values())
    return batches

  def save(self, directory: pathlib.Path, streams: Sequence[int]) -> None:
    """Writes the positions of some of the streams into a folder on this machine.

    Raises:
      ConfigError: the pipeline has an operation whose state cannot be saved.
    """
    for stream in streams:
      _save_iterator(self._iterators[stream], directory / stream_name(stream))

  def restore(self, directory: pathlib.Path) -> None:
    """Goes to the positions that `save` wrote."""
    # Into new iterators: TensorFlow can take many seconds to bring one that is running to a stop first.
    self._iterators = {stream: iter(dataset) for stream, dataset in self._datasets.items()}
    for stream, iterator in self._iterators.items():
      tf.train.Checkpoint(iterator=iterator).read(str(directory / stream_name(stream))).assert_consumed()


def stream_name(stream: int) -> str:
  """Returns the prefix of the files that hold a stream's position; the number of hosts is no part of it."""
  return f'stream_{stream:05}'


def stream_files(stream: int) -> tuple[str, str]:
  """Returns the names of the two files of a stream's position."""
  return f'{stream_name(stream)}.index', f'{stream_name(stream)}.data-00000-of-00001'
