"""Weights of mixtures: by tokens, as the paper's, or by examples, as T5's."""

import functools
import hashlib
import json
from collections.abc import Iterable

from switch_jax.tasks.text_to_text import remove_task

from switch_jax.data import corpus
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.data.vocabularies import vocabulary_digest
from switch_jax.folders.cache import cache_directory

# The first so many examples of the training split tell the mean; its standard error is then below 2 % for any of GLUE.
EXAMPLES_COUNTED = 2048


def count_tokens(task: seqio.Task, split: str = 'train') -> float:
  """Returns the tokens of a split, inputs and targets with their EOS, nothing trimmed.

  Tokens of the first 2,048 examples, divided by their number, times the number of examples. Kept in the cache folder,
  since a run is continued only with the same weights.

  Args:
    task: its source's examples are formatted and tokenised, so a query with three answers counts three times.
    split: which split.
  """
  examples = task.num_input_examples(split)
  vocabulary = task.output_features['targets'].vocabulary
  key = json.dumps([task.name, str(task.source), split, examples, vocabulary_digest(vocabulary), EXAMPLES_COUNTED])
  place = cache_directory() / 'token_counts' / f'{hashlib.sha256(key.encode()).hexdigest()[:20]}.json'
  try:
    return json.loads(place.read_text(encoding='utf-8'))['tokens']
  except (OSError, ValueError, KeyError):
    pass
  source = task.source.get_dataset(split, shuffle=False).take(EXAMPLES_COUNTED)
  tokens = 0
  for example in task.preprocess_precache(source, seed=0).as_numpy_iterator():
    tokens += sum(len(example[name]) + 1 for name in ('inputs', 'targets'))
  record = {'task': task.name, 'tokens': tokens * examples / min(examples, EXAMPLES_COUNTED)}
  draft = corpus.make_draft_folder(place.parent)
  (draft / place.name).write_text(json.dumps(record), encoding='utf-8')
  (draft / place.name).replace(place)
  draft.rmdir()
  return record['tokens']


@functools.cache
def _tokens_of(task: seqio.Task) -> float:
  return count_tokens(task)


def token_rate(task: seqio.Task) -> float:
  """Returns the weight of a task in a mixture by tokens: 0 if it has no training split."""
  return _tokens_of(task) if 'train' in task.splits else 0.0


def add_mixtures(name: str, by_tokens: str, examples: Iterable[tuple[str, float]]) -> None:
  """Registers a mixture by examples and one by tokens, in place of older ones of these names.

  A task is drawn with a probability proportional to its weight. By tokens, a task of long texts is drawn more often
  than by examples; see `count_tokens`.

  Args:
    name: of the mixture by examples.
    by_tokens: of the mixture by tokens.
    examples: each task with its number of training examples; 0 for those that are evaluated only.
  """
  examples = dict(examples)
  remove_task(name)
  remove_task(by_tokens)
  seqio.MixtureRegistry.add(name, list(examples.items()))
  seqio.MixtureRegistry.add(by_tokens, [(task, token_rate if count else 0.0) for task, count in examples.items()])
