"""mC4 as mT5 was pre-trained on it: 107 tasks, `mc4.de` and so on, and their mixture `mc4_span_corruption`.

From TensorFlow Datasets, `c4/multilingual:3.1.0`, each language a split of its own; mT5's vocabulary of 250,000 pieces
unless `VOCABULARY` names another. A task is drawn with a probability proportional to the number of its examples to the
power 0.3 (`config.DataConfig.sampling_exponent`): the numbers are those of the prepared data. There are 101 languages;
six of them have a second task for their text in Latin letters (`mc4.hi_Latn`).
"""

import functools
import hashlib
import json

from switch_jax.tasks.text_to_text import features_of, remove_task
from switch_jax.tasks.tfds_source import TfdsSource, unlabelled_text

from switch_jax.config import DataConfig
from switch_jax.data.groups import GROUP, group_feature
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.sampled_groups import SAMPLING_EXPONENT
from switch_jax.data.span_corruption import span_corruption
from switch_jax.data.vocabularies import MT5_VOCABULARY, make_vocabulary
from switch_jax.tasks import languages

READS_LANGUAGES = True
MIXTURE = 'mc4_span_corruption'
PREFIX = 'mc4.'
DATA_SET = 'c4/multilingual:3.1.0'


def task_name(language: str) -> str:
  """Returns the name of a language's task, mT5's: `bg-Latn` is `mc4.bg_Latn`."""
  return f'{PREFIX}{language.replace("-", "_")}'


def is_name(name: str) -> bool:
  """Whether a task or mixture is one of these (or a misspelt one)."""
  return name.startswith('mc4')


def _rate(task: seqio.Task, exponent: float) -> float:
  """Returns the weight of a task: its training examples to a power."""
  examples = task.num_input_examples('train')
  return float(examples) ** exponent if examples else 0.0


def _add_group(dataset: tf.data.Dataset, number: int) -> tf.data.Dataset:
  return dataset.map(lambda example: {**example, GROUP: tf.constant([number])}, num_parallel_calls=tf.data.AUTOTUNE)


def _languages(data: DataConfig) -> list[str]:
  return languages.choose(data.languages or languages.MC4, languages.MC4, MIXTURE)


def register(data: DataConfig) -> None:
  """Registers the tasks of the configuration's languages and their mixture.

  Raises:
    ConfigError: there is no such language.
  """
  vocabulary = make_vocabulary(data.vocabulary or MT5_VOCABULARY)
  chosen = _languages(data)
  for number, language in enumerate(chosen, start=1):
    remove_task(task_name(language))
    seqio.TaskRegistry.add(
      task_name(language),
      source=TfdsSource(DATA_SET, {'train': language, 'validation': f'{language}-validation'}),
      preprocessors=[*unlabelled_text(span_corruption), functools.partial(_add_group, number=number)],
      output_features=features_of(vocabulary) | group_feature(chosen),
      metric_fns=[],
    )
  exponent = SAMPLING_EXPONENT if data.sampling_exponent is None else data.sampling_exponent
  remove_task(MIXTURE)
  rate = functools.partial(_rate, exponent=exponent)
  seqio.MixtureRegistry.add(MIXTURE, [(task_name(language), rate) for language in chosen])


def corpus_digest(data: DataConfig) -> str:
  """Returns what identifies the data: its name, and how many examples each language has.

  Raises:
    ConfigError: the data set has not been prepared.
  """
  names = [task_name(language) for language in _languages(data)]
  if data.mixture_or_task_name in names:
    names = [data.mixture_or_task_name]
  sizes = {name: seqio.TaskRegistry.get(name).num_input_examples('train') for name in names}
  return hashlib.sha256(json.dumps([DATA_SET, sizes]).encode()).hexdigest()
