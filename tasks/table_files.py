"""Text-to-text tasks made of the user's own tables: a row of a CSV, TSV, JSON-lines, Parquet or Arrow file an example.

    --gin_file=gin/examples/my_task.gin --gin.TASK_FILES='/data/reviews/*.csv'

`config.TableConfig` says which columns are inputs and targets, which labels there are, what is held out and which
metrics are computed; what it leaves open is guessed from the columns and the rows, and said. Registers, when `register`
is called with a configuration,

    <name>         inputs -> target of every table, <name> from its `TableConfig`: my_task
    <name>_text    span corruption of the same inputs, for pre-training: what is held out is held out here too
    my_tasks       where there are several tables: all of them, drawn by their weights

The vocabulary is bytes unless `VOCABULARY` names another; a run that begins with a checkpoint inherits that one's.

The rows are read once, checked from end to end, and copied into the cache folder, a row a line (`table_corpus`). Later
runs compare the files as `switch_jax.tasks.text_files` does.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping

from switch_jax.tasks.table_corpus import SEPARATOR, get_corpus, get_text_corpus
from switch_jax.tasks.table_recipe import make_recipe

from switch_jax.config import ConfigError, DataConfig, TableConfig
from switch_jax.data import corpus, text_task
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.vocabularies import BYTES, check_vocabulary, make_vocabulary
from switch_jax.tasks import named_metrics, text_to_text

MIXTURE = 'my_tasks'
TEXT_SUFFIX = '_text'
# So few different targets, each standing for at least two rows, are classes.
MAX_CLASSES = 50


@functools.lru_cache(maxsize=64)
def _count_targets(directory: pathlib.Path, digest: str) -> dict[str, collections.Counter[str]]:
  """Returns how often each target stands in each split of a corpus."""
  made = corpus.Corpus.load(directory)
  assert made is not None
  assert made.digest == digest
  return {
    split: collections.Counter(line.partition(SEPARATOR)[2] for line in made.paragraphs(split))
    for split in (corpus.TRAIN, corpus.VALIDATION)
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Targets:
  """What the targets of a table are.

  Attributes:
    counts: how often each stands in all rows.
    are_classes: whether they are a few labels.
    metrics: names of those that are computed.
  """

  counts: collections.Counter[str]
  are_classes: bool
  metrics: tuple[str, ...]


def _look_at_targets(table: TableConfig, made: corpus.Corpus) -> _Targets:
  splits = _count_targets(made.directory, made.digest)
  counts = splits[corpus.TRAIN] + splits[corpus.VALIDATION]
  are_classes = table.labels is not None or len(counts) <= min(MAX_CLASSES, counts.total() // 2)
  metrics = table.metrics
  if metrics is None and are_classes:
    metrics = ('accuracy', 'f1')
  elif metrics is None and all(map(named_metrics.is_number, counts)):
    metrics = ('correlation',)
  elif metrics is None:
    words = sum(len(target.split()) * count for target, count in counts.items()) / counts.total()
    metrics = ('exact_match', 'token_f1') if words <= 5 else ('rouge',)
  wanting_numbers = [name for name in metrics if name in ('pearson', 'spearman', 'correlation')]
  if wanting_numbers and (wrong := next((t for t in counts if not named_metrics.is_number(t)), None)):
    raise ConfigError(
      f'TableConfig.metrics has {wanting_numbers[0]!r}, which needs numbers, and a target of {table.name} is '
      f'{wrong[:60]!r}; choose other METRICS.'
    )
  return _Targets(counts=counts, are_classes=are_classes, metrics=metrics)


def _tables(data: DataConfig) -> tuple[TableConfig, ...]:
  if not data.tables:
    raise ConfigError(
      f'DataConfig.tables is {data.tables!r}; switch_jax.tasks.table_files needs at least one config.TableConfig; give '
      "--gin_file=gin/examples/my_task.gin and --gin.TASK_FILES='/some/dir/*.csv'."
    )
  return data.tables


def _check_lengths(
  name: str, labels: Iterable[str], vocabulary: seqio.Vocabulary, feature_lengths: Mapping[str, int]
) -> None:
  """Raises a `ConfigError` for a label that would lose its end."""
  longest = max(labels, key=lambda label: len(vocabulary.encode(label)))
  needed, room = len(vocabulary.encode(longest)) + 1, feature_lengths['targets']
  if needed > room:
    lengths = {**feature_lengths, 'targets': needed}
    raise ConfigError(
      f'the label {longest[:60]!r} of {name} takes {needed} tokens with its end, and TASK_FEATURE_LENGTHS gives '
      f'targets {room}; set --gin.TASK_FEATURE_LENGTHS="{lengths}", or shorter names by LABELS.'
    )


@text_to_text.plain
def _split_pair(line: tf.Tensor) -> dict[str, tf.Tensor]:
  """Makes an example of a line of the corpus."""
  parts = tf.strings.split(tf.strings.regex_replace(line, corpus.NEWLINE_MARK, '\n'), SEPARATOR)
  return {'inputs': parts[0], 'targets': parts[1]}


def register(data: DataConfig) -> None:
  """Reads and checks the tables, and registers their tasks, and their mixture where there are several.

  Raises:
    ConfigError: something is wrong with a table, or a label is longer than the targets.
  """
  vocabulary = make_vocabulary(data.vocabulary or BYTES)
  check_vocabulary(vocabulary)
  for table in _tables(data):
    made, _ = get_corpus(table)
    targets = _look_at_targets(table, made)
    if targets.are_classes and not data.mixture_or_task_name.endswith(TEXT_SUFFIX):
      _check_lengths(table.name, targets.counts, vocabulary, data.feature_lengths)
    text_to_text.add_task(
      table.name,
      text_task.CorpusSource(functools.partial(_pairs, table)),
      [text_to_text.mapped(_split_pair)],
      vocabulary,
      named_metrics.by_name(targets.metrics),
      named_metrics.stripped,
    )
    text_task.add_span_corruption_task(
      table.name + TEXT_SUFFIX, functools.cache(functools.partial(get_text_corpus, table)), vocabulary
    )
  text_to_text.remove_task(MIXTURE)
  if len(data.tables) > 1:
    seqio.MixtureRegistry.add(MIXTURE, [(table.name, table.weight) for table in data.tables])


def _pairs(table: TableConfig) -> corpus.Corpus:
  return get_corpus(table)[0]


def template(data: DataConfig) -> str | None:
  """Returns the template that all tables share, which a checkpoint records for `infer`; None if they differ."""
  if data.mixture_or_task_name.endswith(TEXT_SUFFIX):
    return None
  found = {make_recipe(table).template for table in _tables(data)}
  return found.pop() if len(found) == 1 else None


def describe(data: DataConfig) -> str:
  """Returns what was read, what was guessed and what is held out, one line."""
  return '; '.join(_describe(table) for table in _tables(data))


def _describe(table: TableConfig) -> str:
  made, recipe = get_corpus(table)
  targets = _look_at_targets(table, made)
  held_out, rows = made.num_paragraphs(corpus.VALIDATION), targets.counts.total()
  parts = [
    f'{table.name}: {rows:,} rows of {len(recipe.train) + len(recipe.held_out)} file(s), inputs {recipe.template!r}, '
    f'targets {recipe.target!r}' + (f' (guessed: {", ".join(recipe.guessed)})' if recipe.guessed else '')
  ]
  if targets.are_classes:
    most = sorted(targets.counts.items(), key=lambda item: (-item[1], item[0]))
    listed = ', '.join(f'{label} {count:,}' for label, count in most[:8]) + (', ...' if len(most) > 8 else '')
    parts.append(f'{len(most)} labels ({listed})')
  how = 'by file' if recipe.held_out else 'by the hash of the inputs'
  parts.append(f'held out are {held_out:,} rows ({held_out / rows:.1%}) {how}')
  parts.append(f'metrics {", ".join(targets.metrics)}' + ('' if table.metrics else ' (guessed)'))
  return ', '.join(parts)


def corpus_digest(data: DataConfig) -> str:
  """Returns a sha256 of the examples of all tables and of their split."""
  return hashlib.sha256(json.dumps([get_corpus(table)[0].digest for table in _tables(data)]).encode()).hexdigest()
