"""The one reading of text files as people have them: which bytes are a line, and what is no UTF-8 text at all.

Counting, digests, splits, training and prediction all read through here, so that they see the same text. A line ends
with a newline, a carriage return and a newline, or a lone carriage return; a byte order mark is no part of the text.
No TensorFlow here: its own reader deletes carriage returns, which joins words.
"""

import codecs
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from etils import epath

from switch_jax.config import ConfigError


class EncodingError(ConfigError):
  """A file is no UTF-8 text."""


_BLOCK_BYTES = 2**22
# The longer marks first: that of UTF-32 begins with that of UTF-16.
_UNICODE_MARKS = {
  codecs.BOM_UTF32_LE: 'UTF-32',
  codecs.BOM_UTF32_BE: 'UTF-32',
  codecs.BOM_UTF16_LE: 'UTF-16',
  codecs.BOM_UTF16_BE: 'UTF-16',
}
_NO_TEXT = {
  b'\x1f\x8b': ('compressed with gzip', 'gunzip'),
  b'BZh91AY&SY': ('compressed with bzip2', 'bunzip2'),
  b'\xfd7zXZ\0': ('compressed with xz', 'unxz'),
  b'\x28\xb5\x2f\xfd': ('compressed with Zstandard', 'unzstd'),
  b'PK\x03\x04': ('a zip archive (as .docx, .xlsx and .epub are)', 'unzip, or a converter of that format'),
  b'%PDF-1.': ('a PDF file', 'pdftotext'),
  b'%PDF-2.': ('a PDF file', 'pdftotext'),
}
# UTF-8 text has next to no zero bytes; UTF-16 has one in each space and line end, always on the same side.
SNIFFED_BYTES = 4096
_SPACES = frozenset(b' \t\r\n')


class TextLine(NamedTuple):
  """A line of a file.

  Attributes:
    offset: bytes of the file before it.
    raw: its bytes without the line's end.
  """

  offset: int
  raw: bytes

  def text(self, undecodable: str = 'refuse') -> str:
    """Returns its text: 'replace' puts U+FFFD in place of bytes that are no UTF-8, at which 'refuse' raises."""
    return self.raw.decode('utf-8', 'replace' if undecodable == 'replace' else 'strict')


def plain_ends(text: str) -> str:
  """Returns a text whose lines all end with a newline alone."""
  return text.replace('\r\n', '\n').replace('\r', '\n') if '\r' in text else text


def check_encoding(name: str, head: bytes) -> None:
  """Checks that a file can be UTF-8 text.

  Args:
    name: of the file, for the message.
    head: its first bytes.

  Raises:
    EncodingError: it is UTF-16 or UTF-32, with or without a byte order mark, or compressed, an archive or a PDF.
  """
  found = next((encoding for mark, encoding in _UNICODE_MARKS.items() if head.startswith(mark)), None)
  how = 'as its byte order mark says'
  if not found:
    found, how = _wide_encoding(head[:SNIFFED_BYTES]), 'as the places of its zero bytes show'
  if found:
    raise EncodingError(
      f'{name} is {found}, {how}, and only UTF-8 is read; convert it: iconv -f {found} -t UTF-8 {name} > new file.'
    )
  for magic, (kind, remedy) in _NO_TEXT.items():
    if head.startswith(magic):
      raise EncodingError(f'{name} is no text but {kind}; only plain UTF-8 text is read; make it so with {remedy}.')


def _wide_encoding(head: bytes) -> str | None:
  """Returns the encoding of text of two or four bytes a character without a mark, or None."""
  even, odd = head[::2], head[1::2]
  if len(head) < 4 or 0 not in head:
    return None
  # Of the four bytes of a character in UTF-32 the highest is zero, and nearly always the next one.
  quarters = [head[i::4].count(0) / len(head[i::4]) for i in range(4)]
  if quarters[3] == 1 and quarters[2] > 0.5 > quarters[0]:
    return 'UTF-32LE'
  if quarters[0] == 1 and quarters[1] > 0.5 > quarters[3]:
    return 'UTF-32BE'
  little, big = _count_spaces(even, odd), _count_spaces(odd, even)
  at_least = max(2, len(even) / 200)
  # Where zero bytes only follow lines of UTF-8, as many of the pairs lie across the characters of UTF-16.
  if little >= at_least and little >= 20 * max(big, _count_spaces(odd, even[1:])):
    return 'UTF-16LE'
  if big >= at_least and big >= 20 * max(little, _count_spaces(even[1:], odd)):
    return 'UTF-16BE'
  if len(head) % 2 == 0 and sorted((even.count(0), odd.count(0))) == [0, len(even)]:  # Latin letters, and no space yet
    return 'UTF-16LE' if odd.count(0) else 'UTF-16BE'
  return None


def _count_spaces(low: bytes, high: bytes) -> int:
  """Counts spaces and line ends among the characters that have these low and high bytes."""
  return sum(not b and a in _SPACES for a, b in zip(low, high, strict=False))


def _blocks(path: epath.Path) -> Iterator[tuple[int, bytes]]:
  """Yields (offset, bytes) of a file from behind a byte order mark on; no line's end is torn."""
  with path.open('rb') as file:
    block = file.read(_BLOCK_BYTES)
    check_encoding(str(path), block)
    offset = len(codecs.BOM_UTF8) if block.startswith(codecs.BOM_UTF8) else 0
    block = block[offset:]
    while more := file.read(_BLOCK_BYTES):
      whole = len(block) - block.endswith(b'\r')  # the newline that may follow belongs to it
      yield offset, block[:whole]
      offset += whole
      block = block[whole:] + more
    yield offset, block


def read_text_blocks(path: epath.Path) -> Iterator[bytes]:
  """Yields the text of a file, some MiB at a time, with all lines' ends as newlines and without a byte order mark.

  Raises:
    ConfigError: see `check_encoding`.
  """
  for _, block in _blocks(path):
    yield block.replace(b'\r\n', b'\n').replace(b'\r', b'\n') if b'\r' in block else block


def read_text_lines(path: epath.Path) -> Iterator[TextLine]:
  """Yields the lines of a file, also empty ones.

  Raises:
    ConfigError: see `check_encoding`.
  """
  begun: list[bytes] = []  # a line of which no end has come yet
  start = 0
  for offset, block in _blocks(path):
    start = start if begun else offset
    for piece in block.splitlines(keepends=True):
      begun.append(piece)
      if piece.endswith((b'\n', b'\r')):
        line = b''.join(begun)
        yield TextLine(start, line.removesuffix(b'\n').removesuffix(b'\r'))
        start += len(line)
        begun.clear()
  if begun:
    yield TextLine(start, b''.join(begun))


def decode_line(path: epath.Path, number: int, line: TextLine, undecodable: str = 'refuse') -> str:
  """Returns the text of a line.

  Args:
    path: of the file, for the message.
    number: of the line, from 1.
    line: what was read.
    undecodable: see `TextLine.text`.

  Raises:
    EncodingError: a byte that is not UTF-8, with its line and its offset in the file; or zero bytes, of which UTF-16
      that was added to UTF-8, and binary files, are full.
  """
  if 4 * (zeros := line.raw.count(0)) > len(line.raw):
    raise EncodingError(
      f'{path} is no text from offset {line.offset} on (line {number}): {zeros} of the {len(line.raw)} bytes there are '
      'zero, as in UTF-16 or a binary file; only UTF-8 is read; remove or convert that part.'
    )
  try:
    return line.text(undecodable)
  except UnicodeDecodeError as error:
    raise EncodingError(
      f'{path} is not UTF-8: byte {line.raw[error.start]:#04x} at offset {line.offset + error.start}; convert it '
      f'(line {number}; {error.reason}). If it is Latin-1: iconv -f latin1 -t utf-8 {path} > new file. '
      'Or give such bytes up, for U+FFFD each: --gin.UNDECODABLE=replace.'
    ) from error


def read_decoded(path: epath.Path, undecodable: str = 'refuse') -> Iterator[str]:
  """Yields the texts of the lines of a file; see `decode_line`.

  Raises:
    EncodingError: it is no UTF-8 text.
  """
  for number, line in enumerate(read_text_lines(path), start=1):
    yield decode_line(path, number, line, undecodable)


def check_files(files: Iterable[epath.Path], undecodable: str = 'refuse') -> None:
  """Reads files from end to end, and names all that are no UTF-8 text at once.

  Raises:
    EncodingError: what is wrong with the first one, and the names of the others.
  """
  wrong = []
  for path in files:
    try:
      for _ in read_decoded(path, undecodable):
        pass
    except EncodingError as error:
      wrong.append((path, error))
  if len(wrong) == 1:
    raise wrong[0][1]
  if wrong:
    others = ', '.join(str(path) for path, _ in wrong[1:])
    raise EncodingError(f'{len(wrong)} files are no UTF-8 text; {wrong[0][1]} Likewise {others}.')
