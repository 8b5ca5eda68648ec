"""Objectives on the user's own text: `TEXT_FILES` is a pattern of `.txt`, `.jsonl` and `.parquet` files.

    --gin.TEXT_FILES='/data/books/*.txt'

A `.txt` file is UTF-8 with a blank line between paragraphs; one that is longer than 16 KiB is cut at the end of a line
or a word and its pieces count as paragraphs. A `.jsonl` file has one JSON object a line, whose `text` is one document,
and a `.parquet` file a column `text`. The pattern may match all three, on a local disk or `gs://`.
Lines end with `\\n`, `\\r\\n` or `\\r`, and all three are the same text (`switch_jax.data.text_lines`).

The hash of a paragraph or document decides whether it is held out, so two equal ones are always on the same side. The
held-out share is 1.5 %, more (up to 10 %) if the files are so small that this would be less than 64 KiB. Where so few
paragraphs leave next to nothing on one side, the text is cut into some 128 pieces, of at most 16 KiB; if too few of
these are different, into its lines; and just enough of them for that share are held out.

The files are read once, checked from end to end, and copied into the cache folder, ready to be read back a paragraph a
line. Later runs compare the contents, or, when the files are more than 64 MB in all, only the paths, sizes, and
modification times.

Registers `text_files_span_corruption` and, for models without an encoder, `text_files_lm`, when `register` is called
with a configuration: bytes, 359 ids, unless `VOCABULARY` names a SentencePiece model.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etils import epath

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import corpus, span_corruption, tables, templates, text_lines, text_task
from switch_jax.data.vocabularies import BYTES, make_vocabulary
from switch_jax.tasks import user_files

NAME = 'text_files_span_corruption'
LM = 'text_files_lm'
SETTING = 'DataConfig.text_files'
BUILDER_VERSION = 1
SUFFIXES = ('.txt', '.jsonl', '.parquet')
MIN_HELD_OUT, MAX_HELD_OUT, HELD_OUT_BYTES = 0.015, 0.1, 65536
# One file in the cache for this many bytes of text, so that small texts are not scattered over empty files.
_BYTES_PER_FILE = 262_144
# Paragraphs stay whole while at least so much is held out (a quarter of the share, if less) and half is trained on.
_HELD_OUT_BYTES_ENOUGH = 4096
_PIECES_OF_SHORT_TEXT = 128
_MIN_PIECE_BYTES = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cut:
  """How the text is cut where paragraphs are too few.

  Attributes:
    limit: bytes of a piece.
    by_line: whether each line is a piece; otherwise those that follow each other in a paragraph share one.
  """

  limit: int
  by_line: bool

  def pieces(self, texts: Iterable[str]) -> Iterator[str]:
    """Yields the pieces of paragraphs or documents."""
    for text in texts:
      for part in text.split('\n') if self.by_line else (text,):
        yield from cut(part, self.limit)


def find_files(pattern: str | None) -> list[epath.Path]:
  """Returns the files that a pattern matches, sorted by path.

  Raises:
    ConfigError: no pattern, no match, a suffix that is not read here, or nothing but empty files.
  """
  if not pattern:
    raise ConfigError(
      f'DataConfig.text_files is {pattern!r}; the task {NAME} needs a pattern of .txt, .jsonl or .parquet files; '
      "set --gin.TEXT_FILES='/some/dir/*.txt'."
    )
  return user_files.check_files(user_files.matches(pattern, SETTING), pattern, SETTING, SUFFIXES)


def cut(text: str, limit: int = corpus.MAX_PARAGRAPH_BYTES) -> Iterator[str]:
  """Yields pieces of at most `limit` bytes, cut at the last line end or else space before that, if there is one."""
  start = 0
  while start < len(text):
    piece = text[start : start + limit].encode('utf-8')[:limit].decode('utf-8', errors='ignore')
    if start + len(piece) < len(text):
      piece = piece[: max(piece.rfind('\n'), 0) or max(piece.rfind(' '), 0) or len(piece)]
    start += len(piece)
    if piece := piece.strip():
      yield piece


def read_txt(path: epath.Path, undecodable: str = 'refuse') -> Iterator[str]:
  """Yields the paragraphs of a text file: what stands between blank lines, newlines inside them kept."""
  lines, size = [], 0
  for line in text_lines.read_decoded(path, undecodable):
    if (not line.strip() or size > corpus.MAX_PARAGRAPH_BYTES) and lines:
      yield from cut('\n'.join(lines).strip())
      lines, size = [], 0
    if line.strip():
      lines.append(corpus.plain_text(line))
      size += len(line)
  yield from cut('\n'.join(lines).strip())


def read_jsonl(path: epath.Path, undecodable: str = 'refuse') -> Iterator[str]:
  """Yields the documents of a JSON-lines file: the `text` of the object on each line; empty texts are left out.

  Raises:
    ConfigError: a line that is not JSON or an object without a `text` that is a string; with file and line.
  """
  for number, line in enumerate(text_lines.read_decoded(path, undecodable), start=1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except RecursionError:
      raise ConfigError(f'{path}:{number} is no JSON that can be read: it is nested too deeply.') from None
    except ValueError as error:
      raise ConfigError(
        f'{path}:{number} is not JSON ({error}); a .jsonl file has one JSON object on each line '
        '(jq -c ".[]" makes it of an array).'
      ) from error
    if wrong := _what_is_wrong(record):
      raise ConfigError(
        f'{path}:{number} has no text: {wrong}; each line must be an object whose field "text" is a string.'
      )
    # A lone surrogate can be written in JSON but in no UTF-8 text.
    if text := corpus.plain_text(record['text'].encode('utf-8', errors='replace').decode('utf-8')).strip():
      yield text


def _what_is_wrong(record: Any) -> str | None:
  """Returns why an object of a JSON line has no text, or None."""
  if not isinstance(record, dict):
    return f'it is {record!r}'[:80]
  if 'text' not in record:
    return f'it is an object with {", ".join(map(repr, record))[:200] or "nothing in it"}'
  if record['text'] is None:
    return 'its "text" is null'
  if not isinstance(record['text'], str):
    return f'its "text" is {json.dumps(record["text"], ensure_ascii=False)[:80]}, which is no string'
  return None


def read_parquet(path: epath.Path) -> Iterator[str]:
  """Yields the documents of a Parquet file: its column `text`; empty ones are left out.

  Raises:
    ConfigError: it cannot be read, or has no such column of text.
  """
  templates.check_columns('the task of text files', ['text'], list(tables.read_columns(path)), str(path))
  for row in tables.read_rows(path):
    text = row.cells and row.cells['text']
    if not isinstance(text, str | None):
      raise ConfigError(f'{path}:{row.number} has no text: its "text" is {text!r}'[:200] + ', which is no string.')
    if text and (text := corpus.plain_text(text).strip()):
      yield text


def read_file(path: epath.Path, undecodable: str = 'refuse') -> Iterator[str]:
  """Yields the paragraphs or documents of a file. What `undecodable` is: `text_lines.decode_line`.

  Raises:
    ConfigError: it is not of its kind.
  """
  if path.suffix == '.parquet':
    return read_parquet(path)
  return {'.txt': read_txt, '.jsonl': read_jsonl}[path.suffix](path, undecodable)


def _read(files: list[epath.Path], undecodable: str) -> Iterator[str]:
  """Yields the paragraphs and documents of all files in their order."""
  for path in files:
    yield from read_file(path, undecodable)


def _write(writer: corpus.CorpusWriter, read: Callable[[], Iterator[str]]) -> None:
  """Adds the text that `read` yields; the pieces of a document are on the same side."""
  for text in read():
    split = writer.choose_split(text)
    for piece in cut(text):
      writer.add(piece, split)


def _write_pieces(writer: corpus.CorpusWriter, read: Callable[[], Iterator[str]], fraction: float, cut: _Cut) -> None:
  """Adds the text that `read` yields in pieces that are split one by one."""
  held_out = corpus.choose_held_out(cut.pieces(read()), fraction)
  for piece in cut.pieces(read()):
    writer.add(piece, corpus.VALIDATION if corpus.hash_text(piece) in held_out else corpus.TRAIN)


def get_corpus(pattern: str | None, undecodable: str = 'refuse') -> corpus.Corpus:
  """Returns the corpus of the files that a pattern matches, reading them if it is not in the cache yet.

  Args:
    pattern: of the files.
    undecodable: see `text_lines.decode_line`.

  Raises:
    ConfigError: what `find_files` and the readers raise, nothing can be held out, or the cache folder cannot be
      written.
  """
  files = find_files(pattern)
  try:
    return _get_corpus(pattern, files, undecodable)
  except text_lines.EncodingError:
    texts = (path for path in files if path.suffix not in tables.BINARY_SUFFIXES)
    text_lines.check_files(texts, undecodable)  # names all of them
    raise


def _get_corpus(pattern: str | None, files: list[epath.Path], undecodable: str) -> corpus.Corpus:
  made_of = {'builder': BUILDER_VERSION, 'files': (contents := user_files.identify(files))}
  if undecodable != 'refuse':
    made_of['undecodable'] = undecodable
  read = functools.partial(_read, files, undecodable)
  size = sum(int(file['size']) for file in contents)

  def make(write: Callable[[corpus.CorpusWriter], None], size: int, **how: int | bool) -> corpus.Corpus:
    return corpus.get_corpus(
      'text_files',
      made_of | how,
      write,
      held_out_fraction=_held_out_fraction(size),
      num_files=min(corpus.MAX_FILES, 1 + size // _BYTES_PER_FILE),
    )

  made = make(functools.partial(_write, read=read), size)
  if not (total := _count_bytes(made)):
    raise ConfigError(
      f'DataConfig.text_files is {pattern!r}; its {len(files)} file(s) have nothing but blank lines and empty texts; '
      'name files with text.'
    )
  share = _held_out_fraction(total) * total
  # What checkpoints of older runs record is the digest of these pieces.
  if _is_parted(made, min(share / 4, _HELD_OUT_BYTES_ENOUGH)):
    return made
  limit = min(max(total // _PIECES_OF_SHORT_TEXT, _MIN_PIECE_BYTES), corpus.MAX_PARAGRAPH_BYTES)
  for by_line in (False, True):
    write = functools.partial(
      _write_pieces, read=read, fraction=_held_out_fraction(total), cut=_Cut(limit=limit, by_line=by_line)
    )
    made = make(write, total, piece_bytes=limit, by_line=by_line)
    if _is_parted(made, share / 2):
      return made
  raise ConfigError(f'DataConfig.text_files is {pattern!r}; {_why_nothing_is_held_out(made)}')


def _held_out_fraction(size: int) -> float:
  """Returns which share of so many bytes is held out."""
  return min(max(HELD_OUT_BYTES / size, MIN_HELD_OUT), MAX_HELD_OUT)


def _count_bytes(made: corpus.Corpus) -> int:
  return made.num_bytes(corpus.TRAIN) + made.num_bytes(corpus.VALIDATION)


def _is_parted(made: corpus.Corpus, at_least: float) -> bool:
  """Whether so many bytes, but not most of the text, are held out, and half of them is in lines of their own."""
  held_out = made.num_bytes(corpus.VALIDATION)
  if not at_least <= held_out <= _count_bytes(made) / 2:
    return False
  if held_out > 2 * HELD_OUT_BYTES:  # more pieces than equal lines can make different ones
    return True
  sizes = collections.Counter[str]()
  for piece in made.paragraphs(corpus.VALIDATION):
    for line in piece.split('\n'):
      sizes[line] += len(line.encode('utf-8')) + 1
  of_their_own = held_out
  for piece in made.paragraphs(corpus.TRAIN):
    of_their_own -= sum(sizes.pop(line, 0) for line in piece.split('\n'))
    if of_their_own < held_out / 2:
      return False
  return True


def _why_nothing_is_held_out(made: corpus.Corpus) -> str:
  """Returns cause and remedy for a text that cannot be parted although each of its lines is a piece."""
  lines = collections.Counter(itertools.chain(made.paragraphs(corpus.TRAIN), made.paragraphs(corpus.VALIDATION)))
  total = _count_bytes(made)
  if len(lines) == lines.total():
    return f'its {total} bytes of text are too few for a part that is held out; about {4 * _MIN_PIECE_BYTES} bytes do.'
  most, times = lines.most_common(1)[0]
  repeated, half = times * (len(most.encode('utf-8')) + 1), _held_out_fraction(total) / 2
  pieces = f'lines, of at most {made.summary["made_of"]["piece_bytes"]} bytes each, are'
  what = f'its {lines.total():,} {pieces} all equal' if len(lines) == 1 else f'{times:,} of its {pieces} equal'
  return (
    f'{what} ({most[:40]!r}), and what is held out must not be trained on; all other text is '
    f'{total - repeated} bytes; at least {math.ceil(repeated * half / (1 - half))} bytes of other lines do.'
  )


def _check_size(made: corpus.Corpus, data: DataConfig) -> None:
  """Raises unless there is a row to train on, and a held-out example."""
  lengths = data.feature_lengths
  raw_length = span_corruption.find_raw_length(lengths) if 'inputs' in lengths else lengths['targets']
  train, held_out = (made.num_bytes(split) for split in (corpus.TRAIN, corpus.VALIDATION))
  # A piece of a SentencePiece model is three to five bytes, near enough for saying that there is far too little.
  bytes_per_token = 1 if data.vocabulary in (None, BYTES) else 4
  bytes_per_row = bytes_per_token * raw_length
  if train >= bytes_per_row and held_out >= 2 * bytes_per_token:
    return
  raise ConfigError(
    f'DataConfig.text_files is {data.text_files!r}, with {train + held_out} bytes of text, {train} of them to train on '
    f'and {held_out} held out; a row of TASK_FEATURE_LENGTHS takes {bytes_per_row} bytes; use more text (about '
    f'{max(2 * bytes_per_row, 4 * _MIN_PIECE_BYTES)} bytes do) or shorter TASK_FEATURE_LENGTHS.'
  )


def register(data: DataConfig) -> None:
  """Reads and checks the files of `data.text_files`, and registers the tasks that train on them.

  Raises:
    ConfigError: what `get_corpus` raises, or too little text for a row.
  """
  made = get_corpus(data.text_files, data.undecodable)
  _check_size(made, data)
  vocabulary = make_vocabulary(data.vocabulary or BYTES)
  text_task.add_span_corruption_task(NAME, lambda: made, vocabulary)
  text_task.add_lm_task(LM, lambda: made, vocabulary)


def describe(data: DataConfig) -> str:
  """Returns how much text there is and which part of it is held out, one line."""
  made = get_corpus(data.text_files, data.undecodable)
  total, held_out = _count_bytes(made), made.num_bytes(corpus.VALIDATION)
  pieces, held_out_pieces = (
    sum(made.num_paragraphs(split) for split in splits)
    for splits in ((corpus.TRAIN, corpus.VALIDATION), (corpus.VALIDATION,))
  )
  how = made.summary['made_of']
  cut = f', cut into pieces of at most {how["piece_bytes"]:,} bytes' if 'piece_bytes' in how else ''
  return (
    f'{total:,} bytes of text in {len(how["files"])} file(s){cut}; held out are {held_out:,} bytes '
    f'({held_out / total:.1%}), {held_out_pieces:,} of {pieces:,} pieces'
  )


def corpus_digest(data: DataConfig) -> str:
  """Returns a sha256 of the names, sizes, and contents of the files, and of the split of their text."""
  made = get_corpus(data.text_files, data.undecodable)
  return hashlib.sha256(json.dumps([made.summary['made_of'], made.digest]).encode()).hexdigest()
