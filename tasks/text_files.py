"""Span corruption on the user's own text: `TEXT_FILES` is a glob pattern of `.txt` and `.jsonl` files, local or `gs://`.

    --gin.TEXT_FILES='/data/books/*.txt'

A `.txt` file is UTF-8 with a blank line between paragraphs; one that is longer than 16 KiB is cut at the end of a line
or a word and its pieces count as paragraphs. A `.jsonl` file has one JSON object a line, whose `text` is one document.
The hash of a paragraph or document decides whether it is held out, so two equal ones are always on the same side. The
held-out share is 1.5 %, more (up to 10 %) if the files are so small that this would be less than 64 KiB.

The files are read once, checked from end to end, and copied into the cache folder, ready to be read back a paragraph a
line. Later runs compare the contents, or, when the files are more than 64 MB in all, only the paths, sizes, and
modification times.

Registers `text_files_span_corruption` when `register` is called with a configuration: bytes, 359 ids,
unless `VOCABULARY` names a SentencePiece model.
"""

import codecs
import functools
import glob
import hashlib
import json
import os
from collections.abc import Iterator

from etils import epath

from switch_jax.config import ConfigError, DataConfig, first_line
from switch_jax.data import corpus, span_corruption, text_task
from switch_jax.data.quiet_tensorflow import tf
from switch_jax.data.vocabularies import BYTES, make_vocabulary
from switch_jax.folders.cache import cache_directory
from switch_jax.folders.remote import is_remote

NAME = 'text_files_span_corruption'
BUILDER_VERSION = 1
SUFFIXES = ('.txt', '.jsonl')
# Files of more bytes than this are not read again when paths, sizes, and modification times are those of last time.
MAX_BYTES_TO_REREAD = 64_000_000
MIN_HELD_OUT, MAX_HELD_OUT, HELD_OUT_BYTES = 0.015, 0.1, 65536
# One file in the cache for this many bytes of text, so that small texts are not scattered over empty files.
_BYTES_PER_FILE = 262_144


def find_files(pattern: str | None) -> list[epath.Path]:
  """Returns the files that a pattern matches, sorted by path.

  Raises:
    ConfigError: no pattern, no match, a suffix that is not read here, or nothing but empty files.
  """
  if not pattern:
    raise ConfigError(
      f'DataConfig.text_files is {pattern!r}; the task {NAME} needs a pattern of .txt or .jsonl files; '
      "set --gin.TEXT_FILES='/some/dir/*.txt'."
    )
  files = [epath.Path(name) for name in sorted(_matches(os.path.expanduser(pattern)))]
  if folders := [path for path in files if path.is_dir()]:
    if len(folders) == len(files):
      raise ConfigError(f'DataConfig.text_files is {pattern!r}, a folder; name the files in it: {folders[0]}/*.txt.')
    files = [path for path in files if not path.is_dir()]
  if not files:
    raise ConfigError(
      f'DataConfig.text_files is {pattern!r}, which matches no file from the working directory {os.getcwd()}; '
      "check the path, and quote the pattern so that the shell leaves it alone: --gin.TEXT_FILES='/some/dir/*.txt'."
    )
  for path in files:
    if not is_remote(path) and not os.access(path, os.R_OK):
      raise ConfigError(f'{path} cannot be read; make it readable, or narrow DataConfig.text_files {pattern!r}.')
    if path.suffix not in SUFFIXES:
      raise ConfigError(
        f'DataConfig.text_files is {pattern!r}, which matches {path}; only {" and ".join(SUFFIXES)} files are read; '
        'make the pattern end in one of them.'
      )
  if not sum(path.stat().length for path in files):
    raise ConfigError(
      f'DataConfig.text_files is {pattern!r}; its {len(files)} file(s) are empty; name files with text.'
    )
  return files


def _matches(pattern: str) -> list[str]:
  if not is_remote(pattern):
    return glob.glob(pattern, recursive=True)
  try:
    return tf.io.gfile.glob(pattern)
  except tf.errors.OpError as error:
    raise ConfigError(
      f'DataConfig.text_files is {pattern!r}, which cannot be listed ({first_line(error)}); check bucket and rights.'
    ) from error


def _decoded_lines(path: epath.Path) -> Iterator[str]:
  """Yields the lines of a UTF-8 file without their ends.

  Raises:
    ConfigError: a byte that is not UTF-8; with the file and the offset.
  """
  offset = 0
  with path.open('rb') as file:
    for line in file:
      try:
        text = line.decode('utf-8')
      except UnicodeDecodeError as error:
        raise ConfigError(
          f'{path} is not UTF-8: byte {line[error.start]:#04x} at offset {offset + error.start}; convert it, '
          f'for example with iconv -f latin1 -t utf-8.'
        ) from error
      if not offset:
        text = text.removeprefix(codecs.BOM_UTF8.decode('utf-8'))
      offset += len(line)
      yield text.rstrip('\r\n')


def _cut(text: str) -> Iterator[str]:
  """Yields pieces of at most 16 KiB, cut at the last line end or else space before the limit, if there is one."""
  start, limit = 0, corpus.MAX_PARAGRAPH_BYTES
  while start < len(text):
    piece = text[start : start + limit].encode('utf-8')[:limit].decode('utf-8', errors='ignore')
    if start + len(piece) < len(text):
      piece = piece[: max(piece.rfind('\n'), 0) or max(piece.rfind(' '), 0) or len(piece)]
    start += len(piece)
    if piece := piece.strip():
      yield piece


def read_txt(path: epath.Path) -> Iterator[str]:
  """Yields the paragraphs of a text file: what stands between blank lines, newlines inside them kept."""
  lines, size = [], 0
  for line in _decoded_lines(path):
    if (not line.strip() or size > corpus.MAX_PARAGRAPH_BYTES) and lines:
      yield from _cut('\n'.join(lines).strip())
      lines, size = [], 0
    if line.strip():
      lines.append(line)
      size += len(line)
  yield from _cut('\n'.join(lines).strip())


def read_jsonl(path: epath.Path) -> Iterator[str]:
  """Yields the documents of a JSON-lines file: the `text` of the object on each line; empty texts are left out.

  Raises:
    ConfigError: a line that is not JSON or an object without a `text` that is a string; with file and line.
  """
  for number, line in enumerate(_decoded_lines(path), start=1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except ValueError as error:
      raise ConfigError(
        f'{path}:{number} is not JSON ({error}); a .jsonl file has one JSON object on each line.'
      ) from error
    if not isinstance(record, dict) or not isinstance(record.get('text'), str):
      got = f'an object with {", ".join(map(repr, record))}' if isinstance(record, dict) else repr(record)[:80]
      raise ConfigError(
        f'{path}:{number} has no text: it is {got}; each line must be an object whose field "text" is a string.'
      )
    # A lone surrogate can be written in JSON but in no UTF-8 text.
    if text := record['text'].encode('utf-8', errors='replace').decode('utf-8').strip():
      yield text


def _write(writer: corpus.CorpusWriter, files: list[epath.Path]) -> None:
  """Adds the paragraphs of all files in their order."""
  for path in files:
    if path.suffix == '.txt':
      for paragraph in read_txt(path):
        writer.add(paragraph)
    else:
      for document in read_jsonl(path):
        split = writer.choose_split(document)
        for piece in _cut(document):
          writer.add(piece, split)


def _contents(path: epath.Path) -> dict[str, str | int]:
  """Returns the name, size, and sha256 of a file."""
  digest, size = hashlib.sha256(), 0
  with path.open('rb') as file:
    while piece := file.read(2**22):
      digest.update(piece)
      size += len(piece)
  return {'name': path.name, 'size': size, 'sha256': digest.hexdigest()}


def _place_and_time(path: epath.Path) -> tuple[str, int, int]:
  """Returns where a file is, its size, and when it was written, in nanoseconds."""
  if is_remote(path):
    status = tf.io.gfile.stat(os.fspath(path))
    return os.fspath(path), status.length, status.mtime_nsec
  status = os.stat(path)
  return os.path.realpath(path), status.st_size, status.st_mtime_ns


def identify(files: list[epath.Path]) -> list[dict[str, str | int]]:
  """Returns name, size, and sha256 of each file; those of large files from the last time they were read.

  Files of more than 64 MB in all count as unchanged while their paths, sizes, and modification times are.
  """
  stats = [_place_and_time(path) for path in files]
  if sum(size for _, size, _ in stats) <= MAX_BYTES_TO_REREAD:
    return [_contents(path) for path in files]
  known = cache_directory() / 'text_files' / f'seen_{hashlib.sha256(repr(stats).encode()).hexdigest()[:20]}.json'
  try:
    return json.loads(known.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    contents = [_contents(path) for path in files]
  draft = corpus.make_draft_folder(known.parent)
  (draft / known.name).write_text(json.dumps(contents), encoding='utf-8')
  (draft / known.name).replace(known)
  draft.rmdir()
  return contents


def get_corpus(pattern: str | None) -> corpus.Corpus:
  """Returns the corpus of the files that a pattern matches, reading them if it is not in the cache yet.

  Raises:
    ConfigError: what `find_files` and the readers raise, or the cache folder cannot be written.
  """
  files = find_files(pattern)
  contents = identify(files)
  size = sum(int(file['size']) for file in contents)
  return corpus.get_corpus(
    'text_files',
    {'builder': BUILDER_VERSION, 'files': contents},
    functools.partial(_write, files=files),
    held_out_fraction=min(max(HELD_OUT_BYTES / size, MIN_HELD_OUT), MAX_HELD_OUT),
    num_files=min(corpus.MAX_FILES, 1 + size // _BYTES_PER_FILE),
  )


def _check_size(made: corpus.Corpus, data: DataConfig) -> None:
  """Raises unless there is a full held-out batch, and a row to train on."""
  raw_length = span_corruption.find_raw_length(data.feature_lengths)
  train, held_out = (made.num_bytes(split) for split in (corpus.TRAIN, corpus.VALIDATION))
  # A piece of a SentencePiece model is three to five bytes, near enough for saying that there is far too little.
  bytes_per_row = raw_length if data.vocabulary in (None, BYTES) else 4 * raw_length
  rows = held_out // bytes_per_row
  if rows >= data.batch_size and train >= bytes_per_row:
    return
  raise ConfigError(
    f'DataConfig.text_files is {data.text_files!r}, with {train + held_out} bytes of text; its held-out '
    f'{held_out} bytes make {rows} rows of {bytes_per_row} bytes, less than a batch of {data.batch_size}; use more '
    f'text (about {max(data.batch_size, 1) * bytes_per_row * 12} bytes do), a smaller BATCH_SIZE, or shorter '
    'TASK_FEATURE_LENGTHS.'
  )


def register(data: DataConfig) -> None:
  """Reads and checks the files of `data.text_files`, and registers the task that trains on them.

  Raises:
    ConfigError: what `get_corpus` raises, or too little text for one held-out batch.
  """
  made = get_corpus(data.text_files)
  _check_size(made, data)
  text_task.add_span_corruption_task(NAME, lambda: made, make_vocabulary(data.vocabulary or BYTES))


def corpus_digest(data: DataConfig) -> str:
  """Returns a sha256 of the names, sizes, and contents of the files, and of the split of their text."""
  made = get_corpus(data.text_files)
  return hashlib.sha256(json.dumps([made.summary['made_of'], made.digest]).encode()).hexdigest()
