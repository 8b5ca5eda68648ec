"""Text corpora as files of one paragraph a line, made once and kept in a cache folder; no TensorFlow here.

A corpus is a folder of text files for each split and a `corpus.json` that describes them. It is written beside its
final place and moved there whole, so a run that is killed, or several that start together, never leave half of one.
A paragraph's own hash decides its split: no paragraph that is held out occurs in training, whatever the order or the
number of the files. What is written is what is digested and what TensorFlow reads back, byte for byte.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Self

from switch_jax.config import ConfigError
from switch_jax.data.text_lines import plain_ends
from switch_jax.folders.cache import cache_directory

TRAIN, VALIDATION = 'train', 'validation'
# Up to so many data shards read files of their own; with more, SeqIO lets each shard read all and keep its examples.
MAX_FILES = 16
# SeqIO reads this many lines of a file before it goes on to the next: paragraphs that belong together stay together.
LINES_TOGETHER = 16
# A newline inside a paragraph is kept as this control character, since the files have one paragraph a line.
NEWLINE_MARK = '\x1e'
MAX_PARAGRAPH_BYTES = 16384
_SUMMARY = 'corpus.json'
# Raise this when the files of a corpus must be made anew; checkpoints know only the digests of the text.
_FORMAT = 2


def make_draft_folder(parent: pathlib.Path) -> pathlib.Path:
  """Returns a new folder in a folder of the cache, which is made if it is not there.

  Raises:
    ConfigError: the cache cannot be written.
  """
  try:
    parent.mkdir(parents=True, exist_ok=True)
    return pathlib.Path(tempfile.mkdtemp(prefix='making_', dir=parent))
  except OSError as error:
    raise ConfigError(
      f'The cache folder {parent} cannot be written ({error.strerror}); '
      'set the environment variable SWITCH_JAX_CACHE to a folder that can.'
    ) from error


def plain_text(text: str) -> str:
  """Returns a text as a corpus keeps it: newlines alone end lines, and the mark that stands for them is in no text."""
  return plain_ends(text).replace(NEWLINE_MARK, ' ')


def hash_text(text: str) -> int:
  """Returns a number from 0 to 2^64 - 1, which decides whether a text is held out: the beginning of its sha1."""
  return int.from_bytes(hashlib.sha1(text.encode('utf-8')).digest()[:8], 'big')


def is_held_out(text: str, fraction: float) -> bool:
  """Returns whether a paragraph belongs to the validation split: the sha1 of its text is in the lowest `fraction`."""
  return hash_text(text) < fraction * 2**64


def choose_held_out(pieces: Iterable[str], fraction: float) -> frozenset[int]:
  """Chooses as much text to be held out as is asked for, where there is too little of it to leave that to chance.

  Equal pieces stay together. They are taken in the order of their hashes until the fraction is reached, but none that
  would make it more than twice that. Where this gives less than half of the fraction, the smallest others are added, up
  to half of the text.

  Args:
    pieces: of the text, all of them.
    fraction: share of the bytes, below a half.

  Returns:
    `hash_text` of the pieces; they may be less than the fraction, or none, where there are too few different ones.
  """
  sizes: collections.Counter[int] = collections.Counter()
  for piece in pieces:
    sizes[hash_text(piece)] += len(piece.encode('utf-8')) + 1
  total, held, chosen = sizes.total(), 0, set[int]()
  in_order = sorted(sizes)
  for at_most, keys in ((2 * fraction, in_order), (0.5, sorted(in_order, key=lambda key: sizes[key]))):
    if held >= fraction / 2 * total and chosen:
      break
    for key in keys:
      if held < fraction * total and key not in chosen and held + sizes[key] <= at_most * total:
        chosen.add(key)
        held += sizes[key]
  return frozenset(chosen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
  """A corpus in the cache.

  Attributes:
    directory: the folder of its files.
    summary: what `corpus.json` says: files, paragraphs, and bytes of each split, sha256, and what it was made of.
  """

  directory: pathlib.Path
  summary: Mapping[str, Any]

  @property
  def digest(self) -> str:
    """The sha256 of the text in the order of the files, and of the split."""
    return self.summary['sha256']

  def files(self, split: str) -> list[str]:
    """Returns the paths of a split's files, none of them empty."""
    return [str(self.directory / name) for name in self.summary['splits'][split]['files']]

  def paragraphs(self, split: str) -> Iterator[str]:
    """Yields the text of a split, paragraph by paragraph, in the order of its files."""
    for name in self.files(split):
      with open(name, encoding='utf-8', newline='\n') as file:
        for line in file:
          yield line.rstrip('\n').replace(NEWLINE_MARK, '\n')

  def num_paragraphs(self, split: str) -> int:
    """Returns the paragraphs of a split."""
    return self.summary['splits'][split]['paragraphs']

  def num_bytes(self, split: str) -> int:
    """Returns the bytes of a split's files: its text and a newline after each paragraph."""
    return self.summary['splits'][split]['bytes']

  @classmethod
  def load(cls, directory: pathlib.Path) -> Self | None:
    """Returns the corpus in a folder, or None unless it is there and whole."""
    try:
      summary = json.loads((directory / _SUMMARY).read_text(encoding='utf-8'))
      splits = summary['splits'].values()
      sizes = [sum((directory / name).stat().st_size for name in split['files']) for split in splits]
      if sizes != [split['bytes'] for split in splits]:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
      return None
    return cls(directory=directory, summary=summary)


class CorpusWriter:
  """Writes the files of a corpus, paragraph by paragraph."""

  def __init__(self, directory: pathlib.Path, held_out_fraction: float, num_files: int):
    """Opens the files.

    Args:
      directory: an empty folder.
      held_out_fraction: share of the paragraphs that goes to the validation split.
      num_files: files of the training split; the validation split is one file.
    """
    self._directory = directory
    self._fraction = held_out_fraction
    self._sha256 = hashlib.sha256(f'{num_files} files, {held_out_fraction} held out\n'.encode())
    self._open_files = contextlib.ExitStack()
    self._files = {split: self._create(split, n) for split, n in ((TRAIN, num_files), (VALIDATION, 1))}
    self._turns = {split: itertools.cycle(range(len(files) * LINES_TOGETHER)) for split, files in self._files.items()}
    self._paragraphs = {TRAIN: 0, VALIDATION: 0}

  def _create(self, split: str, count: int) -> list[BinaryIO]:
    names = [f'{split}_{i:02}.txt' for i in range(count)]
    return [self._open_files.enter_context(open(self._directory / name, 'wb')) for name in names]

  def choose_split(self, text: str) -> str:
    """Returns the split that a paragraph or document belongs to."""
    return VALIDATION if is_held_out(text, self._fraction) else TRAIN

  def add(self, text: str, split: str | None = None) -> None:
    """Adds a paragraph, to its own split unless another is given (that of the document it is a piece of)."""
    split = split or self.choose_split(text)
    line = plain_text(text).replace('\n', NEWLINE_MARK).encode('utf-8') + b'\n'
    self._files[split][next(self._turns[split]) // LINES_TOGETHER].write(line)
    self._sha256.update(split.encode() + b' ' + line)
    self._paragraphs[split] += 1

  def close(self) -> None:
    """Closes the files."""
    self._open_files.close()

  def finish(self, made_of: Mapping[str, Any]) -> None:
    """Closes the files, removes those that stayed empty, and writes the summary."""
    self.close()
    splits = {}
    for split, files in self._files.items():
      sizes = {path: path.stat().st_size for path in (pathlib.Path(file.name) for file in files)}
      for path in [path for path, size in sizes.items() if not size]:
        path.unlink()
        del sizes[path]
      names = [path.name for path in sizes]
      splits[split] = {'paragraphs': self._paragraphs[split], 'bytes': sum(sizes.values()), 'files': names}
    summary = {'format': _FORMAT, 'sha256': self._sha256.hexdigest(), 'splits': splits, 'made_of': dict(made_of)}
    (self._directory / _SUMMARY).write_text(json.dumps(summary, indent=1), encoding='utf-8')


def get_corpus(
  name: str,
  made_of: Mapping[str, Any],
  write: Callable[[CorpusWriter], None],
  *,
  held_out_fraction: float,
  num_files: int = MAX_FILES,
) -> Corpus:
  """Returns a corpus from the cache, making it first if it is not there.

  Args:
    name: the folder of this kind of corpus in the cache.
    made_of: plain values that decide the text; their digest names the corpus.
    write: adds every paragraph, in a fixed order; not called when the corpus is in the cache.
    held_out_fraction: share of the paragraphs that goes to the validation split.
    num_files: files of the training split.

  Raises:
    ConfigError: the cache folder cannot be written.
  """
  key = {'format': _FORMAT, 'held_out': held_out_fraction, 'num_files': num_files, 'made_of': made_of}
  digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
  place = cache_directory() / name / digest[:20]
  if corpus := Corpus.load(place):
    return corpus
  with contextlib.ExitStack() as cleanup:
    draft = make_draft_folder(place.parent)
    cleanup.callback(shutil.rmtree, draft, ignore_errors=True)
    writer = CorpusWriter(draft, held_out_fraction, num_files)
    cleanup.callback(writer.close)
    write(writer)
    writer.finish(made_of)
    if place.exists() and not Corpus.load(place):  # a damaged one; take its place
      place.rename(draft.with_name(f'{draft.name}_damaged'))
      cleanup.callback(shutil.rmtree, draft.with_name(f'{draft.name}_damaged'), ignore_errors=True)
    # A corpus that another process has put there meanwhile is the same one.
    with contextlib.suppress(OSError):
      draft.rename(place)
  corpus = Corpus.load(place)
  if corpus is None:
    raise OSError(f'The corpus in {place} vanished or was damaged while it was made; start again.')
  return corpus
