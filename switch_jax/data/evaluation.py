"""The held-out split as a fixed list of global batches."""

from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from switch_jax.config import DataConfig
from switch_jax.data import providers
from switch_jax.data.groups import group_names
from switch_jax.data.layout import Batch, HostBatch, rows_to_global
from switch_jax.data.quiet_tensorflow import tf
from switch_jax.data.streams import (
  add_missing_features,
  bounded_options,
  check_ids,
  explain_reading,
  no_example,
  reading,
  to_batches,
  with_named_errors,
)

# The masks of the held-out rows are the same in every run, so that losses of different seeds compare.
EVALUATION_SEED = 0


def read_held_out(
  config: DataConfig, num_batches: int, num_ids: int | None = None, decoder_only: bool = False
) -> tuple[list[HostBatch], tuple[str, ...]]:
  """Returns the first batches of the held-out split, in its own order, as NumPy arrays, and the names of its groups.

  They depend on the task, its lengths, and the batch size only: not on a seed, the streams, or the hosts.

  Args:
    config: which task, and how its examples become batches.
    num_batches: how many, at least 1; fewer come if the split has no more.
    num_ids: ids that the model has rows for; None is the size of the vocabulary.
    decoder_only: whether the model has no encoder; groups are not told apart then.

  Returns:
    Dictionaries of int32 arrays [batch_size, length], named as those of `TrainingSource`; of a task with groups
    (languages) also `encoder_group_ids` and `decoder_group_ids`, which give each token the number of its group, from 1.
    Where the split ends within a batch, rows of padding fill it up. The names are empty for a task without groups.

  Raises:
    ConfigError: the task cannot be found or read, or its split has no example.
  """
  providers.import_task_module(config)
  provider = providers.find_provider(config, config.eval_split)
  groups = () if decoder_only else group_names(provider)
  with reading(config):
    dataset = with_named_errors(provider, config).get_dataset(
      config.feature_lengths,
      split=config.eval_split,
      use_cached=config.use_cached_tasks,
      shuffle=False,
      seed=EVALUATION_SEED,
      num_epochs=1,
      try_in_mem_cache=False,
    )
    dataset = to_batches(dataset, config, config.batch_size, with_groups=bool(groups), decoder_only=decoder_only)
  dataset = dataset.take(num_batches).with_options(bounded_options())
  try:
    batches = [add_missing_features(batch) for batch in dataset.as_numpy_iterator()]
  except tf.errors.OpError as error:
    raise explain_reading(provider, config, config.eval_split, error) from error
  if not batches:
    raise no_example(config.mixture_or_task_name, config.eval_split)
  check_ids(batches, num_ids or provider.output_features['targets'].vocabulary.vocab_size, config.mixture_or_task_name)
  missing = config.batch_size - len(batches[-1]['decoder_target_tokens'])
  batches[-1] = {name: np.pad(rows, ((0, missing), (0, 0))) for name, rows in batches[-1].items()}
  return batches, tuple(groups)


class EvaluationBatches(Iterable[Batch]):
  """Global batches of the held-out split; every pass gives the same ones.

  Attributes:
    groups: names of the groups whose losses are reported apart; `decoder_group_ids` counts them from 1.
  """

  def __init__(self, batches: list[HostBatch], rows_sharding: jax.sharding.Sharding, groups: Sequence[str] = ()):
    """Keeps the batches on the host.

    Args:
      batches: of `read_held_out`, on every process.
      rows_sharding: of arrays [batch, length].
      groups: of `read_held_out`.
    """
    self._batches = batches
    self.groups = tuple(groups)
    self._sharding = rows_sharding

  @property
  def on_host(self) -> Sequence[HostBatch]:
    """The batches as NumPy arrays."""
    return self._batches

  def __len__(self) -> int:
    """Returns the number of batches."""
    return len(self._batches)

  def __iter__(self) -> Iterator[Batch]:
    """Goes through all batches once; each is put on the devices anew."""
    for batch in self._batches:
      yield {name: rows_to_global(rows, self._sharding) for name, rows in batch.items()}


def open_evaluation(
  config: DataConfig,
  rows_sharding: jax.sharding.Sharding,
  num_batches: int,
  num_ids: int | None = None,
  decoder_only: bool = False,
) -> EvaluationBatches:
  """Reads the first `num_batches` batches of the held-out split; see `read_held_out`.

  Every host reads them all and puts the rows of its own devices on them: the split is short, and no host can then have
  fewer batches than another.

  Args:
    config: which task, and how its examples become batches.
    rows_sharding: of arrays [batch, length].
    num_batches: how many, at least 1.
    num_ids: ids that the model has rows for; None is the size of the vocabulary.
    decoder_only: whether the model has no encoder.

  Raises:
    ConfigError: the task cannot be found or read, or its split has no example.
  """
  batches, groups = read_held_out(config, num_batches, num_ids, decoder_only)
  return EvaluationBatches(batches, rows_sharding, groups)
