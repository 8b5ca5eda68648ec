"""Language identification on the local multilingual corpus: a text -> the code of its language.

    "identify the language: Bitte einen gültigen Wert eingeben."  ->  "de"

Held-out texts are translations of messages that are held out in every language, the same as those of
`multilingual_span_corruption`. A text that stands in several languages, or has fewer than 15 characters, is left out,
and a language gives at most 400 texts for training and 60 for evaluation, so that none is a majority. Metric: accuracy,
over all and by language.
"""

import collections
import functools
import hashlib

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import corpus
from switch_jax.data.vocabularies import BYTES, make_vocabulary
from switch_jax.tasks import answers, languages, metrics, multilingual_text, text_to_text, translation

NAME = 'multilingual_language_id'
BUILDER_VERSION = 1
MIN_CHARACTERS, MAX_CHARACTERS = 15, 200
MAX_TEXTS = {corpus.TRAIN: 400, corpus.VALIDATION: 60}


def choose_texts(made: corpus.Corpus) -> dict[str, list[tuple[str, str]]]:
  """Returns, for each split, texts with their languages before them, in the order of the hashes of the texts."""
  texts = {split: list(multilingual_text.tagged(made, split)) for split in MAX_TEXTS}
  spoken = collections.defaultdict(set)
  for language, text in (pair for pairs in texts.values() for pair in pairs):
    spoken[translation.letters(text)].add(language)
  chosen = {}
  for split, pairs in texts.items():
    counts, chosen[split] = collections.Counter(), []
    for language, text in sorted(pairs, key=lambda pair: hashlib.sha256(pair[1].encode()).digest()):
      if len(text) < MIN_CHARACTERS or len(spoken[translation.letters(text)]) > 1:
        continue
      if counts[language] < MAX_TEXTS[split]:
        counts[language] += 1
        chosen[split].append((language, text[:MAX_CHARACTERS]))
  return chosen


def get_corpus(chosen: tuple[str, ...] | None = None) -> corpus.Corpus:
  """Returns the pairs of texts and codes.

  Args:
    chosen: the languages; None is all.

  Raises:
    ConfigError: a package is not installed, there is no such language, or the cache folder cannot be written.
  """
  texts = multilingual_text.get_corpus()

  def write(writer: corpus.CorpusWriter) -> None:
    for split, pairs in choose_texts(texts).items():
      for language, text in pairs:
        if chosen is None or language in chosen:
          writer.add(text_to_text.pair_line(f'identify the language: {text}', language), split)

  made_of = {'builder': BUILDER_VERSION, 'texts': texts.digest, 'languages': chosen}
  return corpus.get_corpus('language_id', made_of, write, held_out_fraction=multilingual_text.HELD_OUT_FRACTION)


def _languages(data: DataConfig) -> tuple[str, ...]:
  there = sorted(multilingual_text.count_bytes(multilingual_text.get_corpus(), corpus.VALIDATION))
  return tuple(there if data.languages is None else languages.choose(data.languages, there, NAME))


def register(data: DataConfig) -> None:
  """Registers the task, with the vocabulary of the configuration or else bytes.

  Raises:
    ConfigError: a package is not installed, there is no such language, or the cache folder cannot be written.
  """
  if data.sampling_exponent is not None:
    raise ConfigError(
      f'DataConfig.sampling_exponent is {data.sampling_exponent}, but {NAME} takes every text once in an epoch; leave '
      'it None.'
    )
  chosen = _languages(data)
  source = functools.cache(functools.partial(get_corpus, chosen))
  vocabulary = make_vocabulary(data.vocabulary or BYTES)
  text_to_text.add_pair_task(NAME, source, vocabulary, [metrics.by_group(metrics.accuracy)], answers.in_its_own_group)


def corpus_digest(data: DataConfig) -> str:
  """Returns the sha256 of the texts and their split."""
  return get_corpus(_languages(data)).digest
