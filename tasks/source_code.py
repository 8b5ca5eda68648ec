"""Python source code of the installed packages and the standard library: a large corpus that needs no download.

About 75 MB, several times the docstrings' prose: enough that a study of small models reads nothing twice. The text is
read where it is installed, so it changes with the installed versions, and losses of different environments do not
compare. It is collected once (some 10 s) into a cache folder whose name depends on those versions.

What is taken, so that the size stays bounded and the text is worth reading:

* `.py` files of the standard library and of the packages that `docstrings` reads; their tests and files of more
  than 256 KiB (generated code and tables) are left out;
* of each file its blocks (what stands between blank lines) of at least 40 characters, each distinct block once;
* up to 120 million characters, in the order of the hashes of the files' names.

The hash of a file's name decides whether it is held out (1.5 %). A block that occurs in any held-out file is left out
of the training files, so no held-out block is a copy of one that was trained on.

Registers `source_code_span_corruption`, `source_code_prefix_lm` (cut at a random place), `source_code_continuation`
(cut after as many tokens as the inputs have) and `source_code_lm` (targets alone, for models without an encoder), when
`register` is called with a configuration. The vocabulary is a
SentencePiece model of 1,000 pieces that is trained on a fortieth of the training text when it is first needed, unless
`VOCABULARY` is `bytes` or names another. SentencePiece makes one space of several and of line ends: with pieces,
indentation is not part of the text.
"""

import functools
import hashlib
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import corpus, text_task
from switch_jax.data.vocabularies import make_vocabulary
from switch_jax.tasks import docstrings, train_vocabulary

SPAN_CORRUPTION = 'source_code_span_corruption'
PREFIX_LM = 'source_code_prefix_lm'
CONTINUATION = 'source_code_continuation'
LM = 'source_code_lm'
# Raise this when the rules below change: caches of older rules are then left alone.
BUILDER_VERSION = 2
HELD_OUT_FRACTION = 0.015
MAX_CHARACTERS = 120_000_000
MAX_FILE_BYTES = 256 * 1024
MIN_BLOCK_CHARACTERS = 40
DOCUMENT_CHARACTERS = 2000
VOCABULARY_SIZE = 1000
# Of the documents of the training split, one in so many is read to train the vocabulary.
_VOCABULARY_PART = 40

_BLANK_LINES = re.compile(r'\n(?:[ \t]*\n)+')


def find_files() -> list[tuple[str, pathlib.Path]]:
  """Returns the source files with their names (`jax/numpy/linalg.py`), in the order of the hashes of the names."""
  found = {}
  for package, roots in docstrings.find_roots().items():
    for path in itertools.chain.from_iterable(root.rglob('*.py') for root in roots):
      root = next(root for root in roots if path.is_relative_to(root))
      if docstrings.is_test(path.relative_to(root)):
        continue
      found[f'{package}/{path.relative_to(root).as_posix()}'] = path
  return sorted(found.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())


def find_blocks(source: str) -> Iterator[str]:
  """Yields the blocks of a source text: what stands between blank lines, if it is long enough; newlines are kept."""
  for block in _BLANK_LINES.split(source):
    if len(text := block.strip('\n').rstrip()) >= MIN_BLOCK_CHARACTERS:
      yield text


def _documents(blocks: Iterable[str]) -> Iterator[str]:
  """Yields the blocks of a file joined by blank lines, some 2,000 characters together."""
  together, size = [], 0
  for block in blocks:
    length = len(block) + 2
    if together and size + length > DOCUMENT_CHARACTERS:
      yield '\n\n'.join(together)
      together, size = [], 0
    together.append(block)
    size += length
  if together:
    yield '\n\n'.join(together)


def _read(path: pathlib.Path) -> list[str]:
  """Returns the blocks of a file; none of one that is too large or cannot be read as UTF-8."""
  try:
    if path.stat().st_size > MAX_FILE_BYTES:
      return []
    return list(find_blocks(path.read_text(encoding='utf-8')))
  except (OSError, UnicodeDecodeError):
    return []


def _write(writer: corpus.CorpusWriter) -> None:
  """Adds the documents: held-out files first, so that their blocks can be kept out of the others."""
  files = find_files()
  held_out = [path for name, path in files if corpus.is_held_out(name, HELD_OUT_FRACTION)]
  others = [path for name, path in files if not corpus.is_held_out(name, HELD_OUT_FRACTION)]
  seen: set[bytes] = set()
  size = 0
  for split, paths in ((corpus.VALIDATION, held_out), (corpus.TRAIN, others)):
    documents = []
    for path in paths:
      new = []
      for block in _read(path):
        if (key := _hash(block)) not in seen:
          seen.add(key)
          new.append(block)
      documents += _documents(new)
      size += sum(len(block) for block in new)
      if size >= MAX_CHARACTERS:
        break
    # Neighbours in the files of a corpus come into the same batches; here they are of different source files.
    for document in sorted(documents, key=_hash):
      writer.add(document, split)


def _hash(text: str) -> bytes:
  return hashlib.blake2b(text.encode('utf-8'), digest_size=12).digest()


def get_corpus() -> corpus.Corpus:
  """Returns the corpus of the installed packages, collecting it if it is not in the cache yet.

  Raises:
    ConfigError: the cache folder cannot be written, or the installed packages have no source files.
  """
  made_of = {'builder': BUILDER_VERSION, 'packages': docstrings.find_versions(), 'max_characters': MAX_CHARACTERS}
  made = corpus.get_corpus('source_code', made_of, _write, held_out_fraction=HELD_OUT_FRACTION)
  if not all(made.num_bytes(split) for split in (corpus.TRAIN, corpus.VALIDATION)):
    raise ConfigError(
      f'No source code was found in {", ".join(docstrings.find_versions())} (is Python running with its sources '
      'removed?); use a text of your own: task_module switch_jax.tasks.text_files and --gin.TEXT_FILES=PATTERN.'
    )
  return made


def get_vocabulary_file() -> str:
  """Returns the path of the vocabulary of the corpus, which is trained if it is not in the cache yet.

  Raises:
    ConfigError: what `get_corpus` raises.
  """
  made = get_corpus()

  def sample():
    return itertools.islice(made.paragraphs(corpus.TRAIN), 0, None, _VOCABULARY_PART)

  return train_vocabulary.get_cached(f'{made.digest} 1/{_VOCABULARY_PART}', VOCABULARY_SIZE, sample)


def register(data: DataConfig) -> None:
  """Registers the tasks, with the vocabulary of the configuration or else the one of the corpus.

  Raises:
    ConfigError: what `get_corpus` raises.
  """
  vocabulary = make_vocabulary(data.vocabulary or get_vocabulary_file())
  source = functools.cache(get_corpus)
  text_task.add_span_corruption_task(SPAN_CORRUPTION, source, vocabulary)
  text_task.add_prefix_lm_task(PREFIX_LM, source, vocabulary)
  text_task.add_continuation_task(CONTINUATION, source, vocabulary)
  text_task.add_lm_task(LM, source, vocabulary)


def corpus_digest(data: DataConfig) -> str:
  """Returns the sha256 of the text and its split."""
  del data  # the same for every configuration
  return get_corpus().digest
