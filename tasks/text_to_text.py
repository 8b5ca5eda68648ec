"""Registers text-to-text tasks in SeqIO: texts to tokens, trimmed, with EOS; and the tasks made of pairs of texts.

A text that is longer than its length in `TASK_FEATURE_LENGTHS` loses its end and still gets its EOS. An empty text is
the EOS alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

from switch_jax.data.corpus import Corpus
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.text_task import CorpusSource

# Python code that tf.data traces goes through AutoGraph, which takes seconds; what has no tensors in conditions needs
# none of it.
plain = tf.autograph.experimental.do_not_convert

_SEPARATOR = '\t'


def remove_task(name: str) -> None:
  """Takes a task or mixture of this name out of SeqIO's registries, if there is one."""
  for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
    if name in registry.names():
      registry.remove(name)


def features_of(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
  """Returns inputs and targets of one vocabulary, each ended by EOS."""
  return {name: seqio.Feature(vocabulary, add_eos=True) for name in ('inputs', 'targets')}


def mapped(function: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
  """Returns a function on one example as a preprocessor of a dataset."""

  @plain
  def preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.map(plain(function), num_parallel_calls=tf.data.AUTOTUNE)

  return preprocess


def add_task(
  name: str,
  source: seqio.DataSource,
  formatting: Sequence[Callable],
  vocabulary: seqio.Vocabulary,
  metric_fns: Sequence[Callable] = (),
  postprocess_fn: Callable | None = None,
) -> None:
  """Registers a task, in place of an older one of that name.

  Args:
    name: in SeqIO's registry.
    source: of the raw examples.
    formatting: preprocessors that make examples with the texts `inputs` and `targets` (and what the metrics need).
    vocabulary: of both.
    metric_fns: each `(targets, predictions) -> {name: number}`, on what `postprocess_fn` returns.
    postprocess_fn: `(text, example, is_target) -> Any`, for each target and each prediction.
  """
  remove_task(name)
  seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      *formatting,
      seqio.preprocessors.tokenize,
      seqio.CacheDatasetPlaceholder(),
      seqio.preprocessors.append_eos_after_trim,
    ],
    output_features=features_of(vocabulary),
    postprocess_fn=postprocess_fn,
    metric_fns=list(metric_fns),
  )


def pair_line(inputs: str, targets: str) -> str:
  """Returns a pair of texts as one paragraph of a corpus; runs of white space become one space."""
  return ' '.join(inputs.split()) + _SEPARATOR + ' '.join(targets.split())


def _split_pair(line: tf.Tensor) -> dict[str, tf.Tensor]:
  """Makes an example of a line that `pair_line` wrote."""
  parts = tf.strings.split(line, _SEPARATOR)
  return {'inputs': parts[0], 'targets': parts[1]}


def add_pair_task(
  name: str,
  get_corpus: Callable[[], Corpus],
  vocabulary: seqio.Vocabulary,
  metric_fns: Sequence[Callable],
  postprocess_fn: Callable | None = None,
) -> None:
  """Registers a task whose corpus has a pair of texts in each paragraph; see `add_task` and `pair_line`."""
  add_task(name, CorpusSource(get_corpus), [mapped(_split_pair)], vocabulary, metric_fns, postprocess_fn)
