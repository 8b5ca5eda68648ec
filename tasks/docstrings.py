"""Span corruption, or language modelling, on the docstrings of the installed packages: prose that needs no download.

The text is read where it is installed, so it changes with the installed versions, and losses of different environments
do not compare. It is collected once (a few seconds) into a cache folder whose name depends on those versions. The same
paragraph never stands twice, and 1.5 % of the paragraphs, chosen by their hash, are held out; a paragraph that differs
from a held-out one by a word may well be in training.

Registers `docstrings_span_corruption` and, for models without an encoder, `docstrings_lm`: bytes, 359 ids, unless
`VOCABULARY` names a SentencePiece model.
"""

import hashlib
import importlib.metadata
import importlib.util
import pathlib
import platform
import re
import sysconfig
from collections.abc import Iterator

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import corpus, text_task
from switch_jax.data.vocabularies import BYTES, make_vocabulary

NAME = 'docstrings_span_corruption'
LM = 'docstrings_lm'
# Raise this when the rules below change: caches of older rules are then left alone.
BUILDER_VERSION = 1
HELD_OUT_FRACTION = 0.015
# Modules that are looked for, each with the distribution whose version identifies its text. All may be missing.
PACKAGES = {
  'chex': 'chex',
  'flax': 'flax',
  'jax': 'jax',
  'jaxlib': 'jaxlib',
  'keras': 'keras',
  'numpy': 'numpy',
  'optax': 'optax',
  'orbax': 'orbax-checkpoint',
  'scipy': 'scipy',
  'seqio': 'seqio',
  'tensorflow': 'tensorflow',
  'tensorflow_datasets': 'tensorflow-datasets',
}

_SKIPPED_FOLDERS = {'__pycache__', 'idle_test', 'lib2to3', 'site-packages', 'test', 'testdata', 'testing', 'tests'}
_TRIPLE_QUOTED = re.compile(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', re.DOTALL)
_BLANK_LINE = re.compile(r'\n[ \t]*\n')
_NOT_PROSE = re.compile(r'>>>|```|^\s*\.\.\. |\\n|copyright|licen[sc]|redistribut|warrant|SPDX', re.IGNORECASE | re.M)
_NOT_LETTERS = re.compile(r'[^A-Za-z ]+')
_MIN_CHARACTERS, _MAX_CHARACTERS, _MIN_WORDS, _MIN_LETTERS = 80, 4000, 12, 0.85


def clean_paragraph(block: str) -> str | None:
  """Returns a block of a docstring as one line of prose, or None if it is not prose.

  Doctests, code, licences, tables, and what is short are not: a paragraph has at least 80 characters and 12 words, and
  letters and spaces are at least 85 % of it.
  """
  if len(block) < _MIN_CHARACTERS or _NOT_PROSE.search(block):
    return None
  text = ' '.join(words := block.split())
  if not _MIN_CHARACTERS <= len(text) <= _MAX_CHARACTERS or len(words) < _MIN_WORDS:
    return None
  return text if len(_NOT_LETTERS.sub('', text)) >= _MIN_LETTERS * len(text) else None


def find_paragraphs(source: str) -> Iterator[str]:
  """Yields the prose paragraphs in the triple-quoted strings of Python source text."""
  for match in _TRIPLE_QUOTED.finditer(source):
    for block in _BLANK_LINE.split(match[1] or match[2] or ''):
      if text := clean_paragraph(block):
        yield text


def find_roots() -> dict[str, list[pathlib.Path]]:
  """Returns the folders of the standard library and of the packages that are installed, importing none of them."""
  roots = {'python': [pathlib.Path(sysconfig.get_paths()['stdlib'])]}
  for module in PACKAGES:
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations:
      roots[module] = [pathlib.Path(place) for place in spec.submodule_search_locations]
  return roots


def find_versions() -> dict[str, str]:
  """Returns the version of each source of text that is installed."""
  versions = {'python': platform.python_version()}
  for module in find_roots():
    if module in PACKAGES:
      try:
        versions[module] = importlib.metadata.version(PACKAGES[module])
      except importlib.metadata.PackageNotFoundError:
        versions[module] = 'unknown'
  return versions


def is_test(path: pathlib.PurePath) -> bool:
  """Whether a path inside a package is a test's, or in another folder that is not read."""
  folders = path.parts[:-1]
  return bool(_SKIPPED_FOLDERS.intersection(folders)) or path.stem.startswith('test_') or path.stem.endswith('_test')


def read_paragraphs(root: pathlib.Path) -> Iterator[str]:
  """Yields the prose paragraphs of all Python files under a folder, tests left out."""
  for path in root.rglob('*.py'):
    if is_test(path.relative_to(root)):
      continue
    try:
      source = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError):
      continue
    yield from find_paragraphs(source)


def _write(writer: corpus.CorpusWriter) -> None:
  """Adds every distinct paragraph, in the order of their hashes, which no file system can change."""
  texts = {text for roots in find_roots().values() for root in roots for text in read_paragraphs(root)}
  for text in sorted(texts, key=lambda text: hashlib.sha256(text.encode('utf-8')).digest()):
    writer.add(text)


def get_corpus() -> corpus.Corpus:
  """Returns the corpus of the installed packages, collecting it if it is not in the cache yet.

  Raises:
    ConfigError: the cache folder cannot be written, or the installed packages hold no docstrings.
  """
  made_of = {'builder': BUILDER_VERSION, 'packages': find_versions()}
  made = corpus.get_corpus('docstrings', made_of, _write, held_out_fraction=HELD_OUT_FRACTION)
  if not all(made.num_bytes(split) for split in (corpus.TRAIN, corpus.VALIDATION)):
    raise ConfigError(
      f'No prose was found in the docstrings of {", ".join(find_versions())} (is Python running with its sources '
      'removed?); use a text of your own: task_module switch_jax.tasks.text_files and --gin.TEXT_FILES=PATTERN.'
    )
  return made


def corpus_digest(data: DataConfig) -> str:
  """Returns the sha256 of the text and its split."""
  del data  # the same for every configuration
  return get_corpus().digest


def register(data: DataConfig) -> None:
  """Registers the tasks with the vocabulary of the configuration; bytes if it names none."""
  vocabulary = make_vocabulary(data.vocabulary or BYTES)
  text_task.add_span_corruption_task(NAME, get_corpus, vocabulary)
  text_task.add_lm_task(LM, get_corpus, vocabulary)


text_task.add_span_corruption_task(NAME, get_corpus)
text_task.add_lm_task(LM, get_corpus)
