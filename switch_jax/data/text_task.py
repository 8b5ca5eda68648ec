"""SeqIO tasks over a corpus: span corruption, prefix language modelling and language modelling."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from switch_jax.data.corpus import NEWLINE_MARK, TRAIN, VALIDATION, Corpus
from switch_jax.data.language_model import language_model
from switch_jax.data.padded_rows import FittingTask
from switch_jax.data.prefix_lm import continuation, prefix_lm
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.span_corruption import span_corruption

# 3 special ids, 256 bytes and 100 sentinels: 359 ids.
VOCABULARY = seqio.ByteVocabulary(extra_ids=100)


# Splits that are every second paragraph of the held-out text: where settings are chosen on the one, numbers of the
# other are not flattered by the choice.
HALVES = {'validation_even': 0, 'validation_odd': 1}

# Python code that tf.data traces goes through AutoGraph, which takes seconds. None of what follows needs it.
_plain = tf.autograph.experimental.do_not_convert


class CorpusSource(seqio.TextLineDataSource):
  """Lines of a corpus, which is found or made only when its files are first listed."""

  def __init__(self, get_corpus: Callable[[], Corpus]):
    super().__init__(split_to_filepattern=dict.fromkeys((TRAIN, VALIDATION, *HALVES), ''))
    self._get_corpus = get_corpus

  def list_shards(self, split: str) -> list[str]:
    """Returns the paths of the split's files."""
    return self._get_corpus().files(VALIDATION if split in HALVES else split)

  @_plain
  def get_dataset(self, split: str = TRAIN, *arguments: Any, **options: Any) -> tf.data.Dataset:
    """Returns the lines of a split; further arguments are those of seqio."""
    lines = super().get_dataset(split, *arguments, **options)
    if (half := HALVES.get(split)) is not None:
      lines = lines.enumerate().filter(lambda i, line: i % 2 == half).map(lambda i, line: line)
    return lines


@_plain
def restore_text(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Makes examples of lines: newlines are restored, and one ends the paragraph, as documents are joined bare."""
  return dataset.map(lambda line: {'targets': tf.strings.regex_replace(line, NEWLINE_MARK, '\n') + '\n'})


@_plain
def tokenize(dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]) -> tf.data.Dataset:
  """Turns text into tokens, without the copy of the text that nobody reads."""
  return seqio.preprocessors.tokenize(dataset, output_features, copy_pretokenized=False)


@_plain
def append_eos(dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]) -> tf.data.Dataset:
  """Ends inputs and targets with EOS."""
  return seqio.preprocessors.append_eos(dataset, output_features)


@_plain
def append_eos_after_trim(
  dataset: tf.data.Dataset, sequence_length: Mapping[str, int], output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
  """Ends inputs and targets with EOS, for which a text that is too long loses its end."""
  return seqio.preprocessors.append_eos_after_trim(dataset, output_features, sequence_length)


def add_span_corruption_task(
  name: str, get_corpus: Callable[[], Corpus], vocabulary: seqio.Vocabulary = VOCABULARY
) -> None:
  """Registers span corruption over a corpus, in place of an older task of that name.

  Args:
    name: the task's name in SeqIO's registry.
    get_corpus: finds or makes the corpus; called when the data is first read.
    vocabulary: bytes unless another one is given.
  """
  _add_task(name, get_corpus, vocabulary, [span_corruption, append_eos])


def add_prefix_lm_task(name: str, get_corpus: Callable[[], Corpus], vocabulary: seqio.Vocabulary = VOCABULARY) -> None:
  """Registers prefix language modelling over a corpus; as `add_span_corruption_task`."""
  _add_task(name, get_corpus, vocabulary, [prefix_lm, append_eos_after_trim])


def add_continuation_task(
  name: str, get_corpus: Callable[[], Corpus], vocabulary: seqio.Vocabulary = VOCABULARY
) -> None:
  """Registers prefix language modelling with a fixed cut over a corpus; as `add_span_corruption_task`."""
  _add_task(name, get_corpus, vocabulary, [continuation], task_class=FittingTask)


def add_lm_task(name: str, get_corpus: Callable[[], Corpus], vocabulary: seqio.Vocabulary = VOCABULARY) -> None:
  """Registers language modelling over a corpus, with targets alone; as `add_span_corruption_task`."""
  _add_task(name, get_corpus, vocabulary, [language_model], features=('targets',))


def _add_task(
  name: str,
  get_corpus: Callable[[], Corpus],
  vocabulary: seqio.Vocabulary,
  objective: Sequence[Callable[..., Any]],
  features: Sequence[str] = ('inputs', 'targets'),
  task_class: type[seqio.Task] = seqio.Task,
) -> None:
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add(
    name,
    source=CorpusSource(get_corpus),
    preprocessors=[restore_text, tokenize, seqio.CacheDatasetPlaceholder(), *objective],
    output_features={name: seqio.Feature(vocabulary, add_eos=True) for name in features},
    metric_fns=[],
    task_cls=task_class,
  )
