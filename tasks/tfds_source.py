"""TensorFlow Datasets as sources of tasks, read where they were prepared and never downloaded unasked.

And what pre-training does to their texts, before its objective and after.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from switch_jax.tasks.text_to_text import mapped

from switch_jax.config import ConfigError
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.text_task import tokenize


class TfdsSource(seqio.TfdsDataSource):
  """A data set of TensorFlow Datasets that says what to do when it has not been prepared.

  Its splits are given, so that tasks can be registered and listed without the data.
  """

  def __init__(self, tfds_name: str, splits: Sequence[str] | Mapping[str, str]):
    """Names the data set.

    Args:
      tfds_name: `name/config:version`.
      splits: those of the task; as a mapping, each with the split or part of a split of the data set that it is.
    """
    super().__init__(tfds_name=tfds_name, splits=splits, read_only=True)  # else SeqIO downloads what is not there
    self._name = tfds_name

  @contextlib.contextmanager
  def _prepared(self) -> Iterator[None]:
    try:
      yield
    # Without its files a data set has no splits; where only its description is there, reading fails.
    except (KeyError, ValueError, AssertionError, tf.errors.NotFoundError) as error:
      raise ConfigError(
        f'The data set {self._name} is not in {self._folder()}. Where there is a network, prepare it with python -c '
        f'"import tensorflow_datasets as tfds; tfds.load({self._name!r})", or set the environment variable '
        'TFDS_DATA_DIR to the folder that holds it.'
      ) from error

  def _folder(self) -> str:
    """Returns the folder that the data set is looked for in."""
    return str(self.tfds_dataset.builder.data_dir).split(self._name.split('/')[0].split(':')[0])[0].rstrip('/')

  def get_dataset(
    self,
    split: str,
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
  ) -> tf.data.Dataset:
    """Returns the examples of a split; see SeqIO.

    Raises:
      ConfigError: the data set has not been prepared.
    """
    with self._prepared():
      return super().get_dataset(split, shuffle=shuffle, seed=seed, shard_info=shard_info)

  def num_input_examples(self, split: str) -> int | None:
    """Returns the number of examples of a split."""
    with self._prepared():
      return super().num_input_examples(split)

  def list_shards(self, split: str) -> Sequence[str]:
    """Returns the names of a split's files."""
    with self._prepared():
      return super().list_shards(split)


def unlabelled_text(objective: Callable) -> list:
  """Returns the preprocessors of pre-training on the texts of a data set; tokens are cached before the objective.

  Args:
    objective: preprocessor that makes inputs and targets of tokens, as span corruption.
  """
  return [
    mapped(lambda example: {'targets': example['text']}),
    tokenize,
    seqio.CacheDatasetPlaceholder(),
    objective,
    seqio.preprocessors.append_eos_after_trim,
  ]
