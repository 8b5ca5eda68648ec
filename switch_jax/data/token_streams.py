"""A corpus as one stream of tokens for each group of its texts (languages), tokenised once and kept in the cache.

No TensorFlow graph is involved: the tokens are an array on disk that is mapped into memory, so opening a corpus that
has been tokenised takes milliseconds whatever its vocabulary.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

import numpy as np

from switch_jax.data import corpus
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.data.vocabularies import vocabulary_digest
from switch_jax.folders.cache import cache_directory

_FORMAT = 1
_TOKENS, _SUMMARY = 'tokens.npy', 'groups.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenStreams:
  """The tokens of a split by group.

  Attributes:
    names: of the groups.
    tokens: uint16 or int32 [all tokens]; a group's tokens stand together, a newline after each text.
    starts: int64 [groups + 1]; group i has the tokens from starts[i] to starts[i + 1].
    num_bytes: int64 [groups], of the text and its newlines, whatever the vocabulary.
  """

  names: tuple[str, ...]
  tokens: np.ndarray
  starts: np.ndarray
  num_bytes: np.ndarray

  @property
  def lengths(self) -> np.ndarray:
    """The tokens of each group, int64 [groups]."""
    return np.diff(self.starts)

  @classmethod
  def of_texts(cls, texts: Iterable[tuple[str, str]], vocabulary: seqio.Vocabulary) -> Self:
    """Tokenises texts, each with the group before it; the texts of a group come together."""
    dtype = np.uint16 if vocabulary.vocab_size <= 2**16 else np.int32
    names: list[str] = []
    pieces, lengths, sizes = [], [], []
    for name, text in texts:
      if not names or names[-1] != name:
        names.append(name)
        lengths.append(0)
        sizes.append(0)
      tokens = np.asarray(_encode(text + '\n', vocabulary), dtype)
      pieces.append(tokens)
      lengths[-1] += len(tokens)
      sizes[-1] += len(text.encode('utf-8')) + 1
    if len(set(names)) < len(names):
      raise ValueError('the texts of a group must come together')
    return cls(
      names=tuple(names),
      tokens=np.concatenate(pieces) if pieces else np.zeros(0, dtype),
      starts=np.cumsum([0, *lengths], dtype=np.int64),
      num_bytes=np.array(sizes, np.int64),
    )

  def select(self, names: Sequence[str]) -> Self:
    """Returns these groups alone, in this order."""
    numbers = [self.names.index(name) for name in names]
    parts = [self.tokens[self.starts[i] : self.starts[i + 1]] for i in numbers]
    return dataclasses.replace(
      self,
      names=tuple(names),
      tokens=np.concatenate(parts),
      starts=np.cumsum([0, *map(len, parts)], dtype=np.int64),
      num_bytes=self.num_bytes[numbers],
    )

  def save(self, directory: pathlib.Path) -> None:
    """Writes the files of a folder; the description comes last."""
    np.save(directory / _TOKENS, self.tokens)
    record = {'names': self.names, 'starts': self.starts.tolist(), 'num_bytes': self.num_bytes.tolist()}
    (directory / _SUMMARY).write_text(json.dumps(record), encoding='utf-8')

  @classmethod
  def load(cls, directory: pathlib.Path) -> Self | None:
    """Returns the tokens in a folder, or None unless they are there and whole."""
    try:
      record = json.loads((directory / _SUMMARY).read_text(encoding='utf-8'))
      tokens = np.load(directory / _TOKENS, mmap_mode='r')
      streams = cls(
        names=tuple(record['names']),
        tokens=tokens,
        starts=np.array(record['starts'], np.int64),
        num_bytes=np.array(record['num_bytes'], np.int64),
      )
    except (OSError, EOFError, ValueError, KeyError, TypeError):
      return None
    return streams if len(tokens) == streams.starts[-1] else None


def _encode(text: str, vocabulary: seqio.Vocabulary) -> Sequence[int] | np.ndarray:
  """Returns the tokens of a text, those of bytes without a Python object for each."""
  if type(vocabulary) is seqio.ByteVocabulary:
    special = vocabulary.vocab_size - vocabulary.extra_ids - 256
    return np.frombuffer(text.encode('utf-8'), np.uint8).astype(np.uint16) + special
  return vocabulary.encode(text)


def get_token_streams(
  digest: str, texts: Callable[[], Iterator[tuple[str, str]]], vocabulary: seqio.Vocabulary
) -> TokenStreams:
  """Returns tokens from the cache, tokenising the texts first if they are not there.

  Args:
    digest: identifies the texts.
    texts: gives them, each with its group before it, the texts of a group together.
    vocabulary: whose tokens.

  Raises:
    ConfigError: the cache folder cannot be written.
  """
  key = json.dumps([_FORMAT, digest, vocabulary_digest(vocabulary)])
  place = cache_directory() / 'tokens' / hashlib.sha256(key.encode()).hexdigest()[:20]
  if streams := TokenStreams.load(place):
    return streams
  made = TokenStreams.of_texts(texts(), vocabulary)
  draft = corpus.make_draft_folder(place.parent)
  try:
    made.save(draft)
    if place.exists() and TokenStreams.load(place) is None:  # a damaged one
      shutil.rmtree(place, ignore_errors=True)
    draft.rename(place)
  except OSError:  # another process was faster, or the disk is full: these tokens are as good without their files
    pass
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  return made
