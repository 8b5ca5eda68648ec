"""The files that a user names by a pattern: found, looked at, and told from those of last time. No reading of text."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence

from etils import epath

from switch_jax.config import ConfigError, first_line
from switch_jax.data import corpus, tables, text_lines
from switch_jax.data.quiet_tensorflow import tf
from switch_jax.folders.cache import cache_directory
from switch_jax.folders.remote import is_remote

# Files of more bytes than this are not read again when paths, sizes, and modification times are those of last time.
MAX_BYTES_TO_REREAD = 64_000_000
_BLOCK_BYTES = 2**22


def check_files(
  files: list[epath.Path], pattern: str, setting: str, suffixes: Sequence[str], macro: str = 'TEXT_FILES'
) -> list[epath.Path]:
  """Returns the files without the folders among them.

  Args:
    files: what the pattern matches.
    pattern: as the user gave it.
    setting: its name, for messages.
    suffixes: what can be read.
    macro: that sets it.

  Raises:
    ConfigError: no file, one that cannot be read or has another suffix, or nothing but empty ones.
  """
  if folders := [path for path in files if path.is_dir()]:
    if len(folders) == len(files):
      raise ConfigError(f'{setting} is {pattern!r}, a folder; name the files in it: {folders[0]}/*{suffixes[0]}.')
    files = [path for path in files if not path.is_dir()]
  if not files:
    raise ConfigError(
      f'{setting} is {pattern!r}, which matches no file from the working directory {os.getcwd()}; '
      'check the path, and quote the pattern so that the shell leaves it alone: '
      f"--gin.{macro}='/some/dir/*{suffixes[0]}'."
    )
  for path in files:
    if not is_remote(path) and not os.access(path, os.R_OK):
      raise ConfigError(f'{path} cannot be read; make it readable, or narrow {setting} {pattern!r}.')
    if not is_remote(path) and not os.path.isfile(path):
      raise ConfigError(f'{path} is no regular file; narrow {setting} {pattern!r}.')
    if path.suffix not in suffixes:
      raise ConfigError(
        f'{setting} is {pattern!r}, which matches {path}; only {", ".join(suffixes[:-1])} and {suffixes[-1]} files are '
        'read; make the pattern end in one of them.'
      )
  if not sum(path.stat().length for path in files):
    raise ConfigError(f'{setting} is {pattern!r}; its {len(files)} file(s) are empty; name files with text.')
  return files


def matches(pattern: str, setting: str) -> list[epath.Path]:
  """Returns the files and folders that a pattern matches, sorted by path.

  Raises:
    ConfigError: a bucket cannot be listed.
  """
  pattern = os.path.expanduser(pattern)
  if not is_remote(pattern):
    # The name of a file may look like a pattern: report[1].txt.
    found = glob.glob(pattern, recursive=True) or [pattern] * os.path.exists(pattern)
    return [epath.Path(name) for name in sorted(found)]
  try:
    return [epath.Path(name) for name in sorted(tf.io.gfile.glob(pattern))]
  except tf.errors.OpError as error:
    raise ConfigError(
      f'{setting} is {pattern!r}, which cannot be listed ({first_line(error)}); check bucket and rights.'
    ) from error


def _contents(path: epath.Path) -> dict[str, str | int]:
  """Returns the name of a file, and size and sha256 of its text: with newlines as the ends of lines.

  Of a file that is no text, as Parquet, of its bytes.
  """
  digest, size = hashlib.sha256(), 0
  for block in _blocks(path):
    digest.update(block)
    size += len(block)
  return {'name': path.name, 'size': size, 'sha256': digest.hexdigest()}


def _blocks(path: epath.Path) -> Iterator[bytes]:
  if path.suffix not in tables.BINARY_SUFFIXES:
    yield from text_lines.read_text_blocks(path)
    return
  with path.open('rb') as file:
    while block := file.read(_BLOCK_BYTES):
      yield block


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
  known = cache_directory() / 'text_files' / f'read_{hashlib.sha256(repr(stats).encode()).hexdigest()[:20]}.json'
  try:
    return json.loads(known.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    contents = [_contents(path) for path in files]
  draft = corpus.make_draft_folder(known.parent)
  (draft / known.name).write_text(json.dumps(contents), encoding='utf-8')
  (draft / known.name).replace(known)
  draft.rmdir()
  return contents
