"""Translation from English, from the messages of programs: 96 languages, short sentences (extra demo).

Registers, when `register` is called with a configuration,

    message_translation           all languages: "translate English to German: Enter a number." and the German for it
    message_translation_LOCALE    one of them, by the name of Django's folder: de, pt_BR, zh_Hans

`config.DataConfig.languages` restricts the former to some of them. Metrics: chrF, sacreBLEU's BLEU and how many are
translated exactly, over all and by language. The vocabulary is bytes unless `VOCABULARY` names another.

The messages are those of Django and, where they are installed, of django-allauth and Plone (plone.app.locales): from
400 to 2,500 in a language, each in up to 96 languages. The hash of an English message's letters decides whether it is
held out, so a held-out message is trained on in no language, with other case or punctuation neither. Messages with
placeholders, names in place of messages, long ones, and those that stay as they are, are left out.
"""

import collections
import functools
import json
import pathlib
import re
import struct
from collections.abc import Iterator, Sequence

from switch_jax.config import ConfigError, DataConfig, suggest
from switch_jax.data import corpus
from switch_jax.data.vocabularies import BYTES, make_vocabulary
from switch_jax.tasks import answers, installed_text, languages, metrics, text_to_text

NAME = 'message_translation'
READS_LANGUAGES = True  # the field languages of the configuration
BUILDER_VERSION = 3
HELD_OUT_FRACTION = 0.1
MIN_CHARACTERS, MAX_CHARACTERS = 4, 100
# Modules with catalogs, each with the distribution that brings it. Only the first must be there; its locales are ours.
CATALOGS = {'django': 'django', 'allauth': 'django-allauth', 'plone.app.locales': 'plone.app.locales'}
# Django's names of locales that others call otherwise.
LOCALES = {
  'no': 'nb', 'pt_PT': 'pt', 'sr@Cyrl': 'sr', 'sr@Latn': 'sr_Latn', 'zh_CN': 'zh_Hans', 'zh_TW': 'zh_Hant',
}  # fmt: skip
# Placeholders of printf, Python and Zope, and markup; and names that stand for a message: `label_save`, `front-text`.
_PLACEHOLDER = re.compile(r'[%{$]|</?\w')
_NAME = re.compile(r'\w*_\w*|[a-z0-9]+(-[a-z0-9]+)+')
_MAGIC = 0x950412DE


def read_catalog(contents: bytes) -> dict[str, str]:
  """Returns the messages of a compiled catalog (`.mo`) and their translations; of plurals the singular.

  Args:
    contents: the bytes of the file, in UTF-8.

  Raises:
    ValueError: it is no catalog.
  """
  try:
    order = next(order for order in '<>' if struct.unpack_from(f'{order}I', contents)[0] == _MAGIC)
    count, originals, translations = struct.unpack_from(f'{order}3I', contents, 8)

    def read(table: int, index: int) -> str:
      length, start = struct.unpack_from(f'{order}2I', contents, table + 8 * index)
      return contents[start : start + length].decode('utf-8').split('\0')[0]

    found = {read(originals, index): read(translations, index) for index in range(count)}
  except (StopIteration, struct.error, UnicodeDecodeError) as error:
    raise ValueError(f'no message catalog ({type(error).__name__})') from error
  # A message that means several things is told apart by a context before it.
  return {message.split('\x04')[-1]: text for message, text in found.items()}


def language_name(locale: str, names: dict[str, str]) -> str:
  """Returns a locale in English words: `pt_BR` is "Portuguese (BR)".

  Args:
    locale: the name of its folder.
    names: languages by their codes of two and of three letters.
  """
  language, _, region = locale.partition('_')
  name = names.get(language, language).split(';')[0].split(' (')[0]
  return f'{name} ({region})' if region else name


@functools.cache
def _language_names() -> dict[str, str]:
  folder = installed_text.package_folder('pycountry', 'pycountry')
  records = json.loads(installed_text.read_bytes(folder / 'databases' / 'iso639-3.json', 'pycountry'))['639-3']
  return {code: record['name'] for record in records for code in (record.get('alpha_2'), record['alpha_3']) if code}


def read_catalogs(folder: pathlib.Path, distribution: str) -> Iterator[tuple[str, dict[str, str]]]:
  """Yields the catalogs of a package: locale, and messages with their translations; runs of white space are one space.

  Raises:
    ConfigError: a file is no catalog.
  """
  for path in sorted(folder.glob('**/LC_MESSAGES/*.mo')):
    try:
      found = read_catalog(installed_text.read_bytes(path, distribution))
    except ValueError as error:
      raise ConfigError(f'{path} is {error}; reinstall {distribution}: {installed_text.INSTALL}.') from error
    yield (
      path.parent.parent.name,
      {' '.join(message.split()): ' '.join(text.split()) for message, text in found.items()},
    )


def _is_wanted(message: str, text: str) -> bool:
  return (
    MIN_CHARACTERS <= len(message) <= MAX_CHARACTERS
    and bool(letters(message) and text)
    and text != message
    and not (_PLACEHOLDER.search(message) or _PLACEHOLDER.search(text) or _NAME.fullmatch(message))
  )


@functools.cache
def read_pairs() -> dict[str, dict[str, str]]:
  """Returns, by locale, the English messages with their translations, sorted; locales without any are left out.

  Where two packages translate a message the first one's translation stays.

  Raises:
    ConfigError: Django is not installed, or the catalogs are not what this was written for.
  """
  pairs = collections.defaultdict(dict)
  for distribution, folder in installed_text.package_folders(CATALOGS).items():
    for name, messages in read_catalogs(folder, distribution):
      locale = LOCALES.get(name, name)
      if locale.startswith('en') or (distribution != 'django' and locale not in pairs):  # English for Australia, say
        continue
      for message, text in messages.items():
        if _is_wanted(message, text):
          pairs[locale].setdefault(message, text)
  return {locale: dict(sorted(pairs[locale].items())) for locale in sorted(pairs)}


def letters(text: str) -> str:
  """Returns the letters and digits of a text without case, other characters between them as one space."""
  return re.sub(r'\W+', ' ', text.lower()).strip()


def choose_split(message: str) -> str:
  """Returns the split of an English message, by the hash of its letters and digits."""
  return corpus.VALIDATION if corpus.is_held_out(letters(message), HELD_OUT_FRACTION) else corpus.TRAIN


def _lines(locales: list[str]) -> Iterator[tuple[str, str]]:
  """Yields the pairs of some locales as paragraphs, each with its split."""
  for locale in locales:
    name = language_name(locale, _language_names())
    for message, text in read_pairs()[locale].items():
      yield text_to_text.pair_line(f'translate English to {name}: {message}', text), choose_split(message)


def get_corpus(chosen: str | Sequence[str] | None = None) -> corpus.Corpus:
  """Returns the corpus of one locale, of several, or of all.

  Raises:
    ConfigError: a package is not installed, or the cache folder cannot be written.
  """
  locales = [chosen] if isinstance(chosen, str) else list(chosen or read_pairs())

  def write(writer: corpus.CorpusWriter) -> None:
    for line, split in _lines(locales):
      writer.add(line, split)

  versions = {name: installed_text.version(name) for name in (*installed_text.package_folders(CATALOGS), 'pycountry')}
  made_of = {'builder': BUILDER_VERSION, 'locales': locales, **versions}
  return corpus.get_corpus(NAME, made_of, write, held_out_fraction=HELD_OUT_FRACTION)


def _locale_of(data: DataConfig) -> str | None:
  """Returns the locale of the configuration's task; None for the task of all.

  Raises:
    ConfigError: there is no such locale.
  """
  _, _, locale = data.mixture_or_task_name.partition(f'{NAME}_')
  if locale and locale not in read_pairs():
    raise ConfigError(
      f'DataConfig.mixture_or_task_name is {data.mixture_or_task_name!r}, but there are no messages in '
      f'{locale!r}.{suggest(locale, read_pairs())} There are in {", ".join(read_pairs())}.'
    )
  return locale or None


def _chosen_locales(data: DataConfig) -> tuple[str, ...] | None:
  """Returns the locales that the configuration restricts the task of all languages to; None if it does not.

  Raises:
    ConfigError: there is no such locale, or the configuration restricts what is no task of all.
  """
  if data.sampling_exponent is not None or (data.languages is not None and _locale_of(data)):
    name = 'languages' if data.sampling_exponent is None else 'sampling_exponent'
    raise ConfigError(
      f'DataConfig.{name} is {getattr(data, name)!r}, which {data.mixture_or_task_name} has no use for: it takes every '
      f'pair once, and {NAME} alone takes languages; leave it None.'
    )
  return None if data.languages is None else tuple(languages.choose(data.languages, read_pairs(), NAME))


def register(data: DataConfig) -> None:
  """Registers the task of all languages, and that of the one that the configuration names.

  Raises:
    ConfigError: Django or pycountry are not installed, or there is no such language.
  """
  read_pairs()
  vocabulary = make_vocabulary(data.vocabulary or BYTES)
  tasks = {NAME: _chosen_locales(data)}
  if locale := _locale_of(data):
    tasks[f'{NAME}_{locale}'] = locale
  for name, chosen in tasks.items():
    source = functools.cache(functools.partial(get_corpus, chosen))
    metric = metrics.by_group(metrics.chrf, metrics.bleu, metrics.accuracy)
    text_to_text.add_pair_task(name, source, vocabulary, [metric], answers.translated)


def corpus_digest(data: DataConfig) -> str:
  """Returns the sha256 of the text and its split."""
  return get_corpus(_locale_of(data) or _chosen_locales(data)).digest
