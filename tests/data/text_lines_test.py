"""What a line is, whatever ends it and wherever blocks end; and what is said of files that are no UTF-8 text."""

import random

import pytest
from etils import epath

from switch_jax.config import ConfigError
from switch_jax.data import text_lines


@pytest.fixture
def write(tmp_path):
  """Returns a function that writes a file."""

  def write(contents):
    (tmp_path / 'a.txt').write_bytes(contents)
    return epath.Path(tmp_path / 'a.txt')

  return write


def raw(path):
  return [line.raw for line in text_lines.read_text_lines(path)]


@pytest.mark.parametrize('block', [1, 2, 3, 5, 2**22])
def test_three_ends_are_one_text_wherever_blocks_end(write, monkeypatch, block):
  monkeypatch.setattr(text_lines, '_BLOCK_BYTES', block)
  chance = random.Random(0)
  for _ in range(50):
    contents = b''.join(chance.choices([b'a', b'bc', b'\r', b'\n', b'\r\n', b'\xc3\xa9', b'\x0b\x0c\x1c'], k=12))
    normal = contents.replace(b'\r\n', b'\n').replace(b'\r', b'\n')
    path = write(contents)
    lines = normal.split(b'\n')
    assert raw(path) == (lines if lines[-1] else lines[:-1])
    assert b''.join(text_lines.read_text_blocks(path)) == normal
    for offset, line in text_lines.read_text_lines(path):
      assert contents[offset:].startswith(line)
      assert not offset or contents[offset - 1 : offset] in (b'\r', b'\n')


def test_a_byte_order_mark_is_no_text_but_counts_for_offsets(write):
  path = write(b'\xef\xbb\xbfa\rb\n')
  assert list(text_lines.read_text_lines(path)) == [(3, b'a'), (5, b'b')]
  assert list(text_lines.read_text_blocks(path)) == [b'a\nb\n']
  assert raw(write(b'')) == raw(write(b'\xef\xbb\xbf')) == []


def test_newlines_alone_are_left(write):
  assert text_lines.plain_ends('a\r\nb\rc\n\r\r\nd\x85\u2028') == 'a\nb\nc\n\n\nd\x85\u2028'


LATIN = 'A sentence of Latin letters, and another one.\n' * 30
RUSSIAN = 'Это предложение на русском языке.\n' * 30
CHINESE = '这是一个句子。然后是另一个句子。 2024\n' * 30


@pytest.mark.parametrize('text', [LATIN, RUSSIAN, CHINESE])
@pytest.mark.parametrize(
  ('encoding', 'said'),
  [
    ('utf-16', 'UTF-16, as its byte order mark says'),
    ('utf-32', 'UTF-32, as its byte order mark says'),
    ('utf-16-le', 'UTF-16LE, as the places of its zero bytes show'),
    ('utf-16-be', 'UTF-16BE, as the places of its zero bytes show'),
    ('utf-32-le', 'UTF-32LE, as the places of its zero bytes show'),
    ('utf-32-be', 'UTF-32BE, as the places of its zero bytes show'),
  ],
)
def test_wide_encodings_are_named(write, text, encoding, said):
  with pytest.raises(ConfigError, match=rf'a\.txt is {said}, and only UTF-8 is read; convert it: iconv -f UTF-'):
    raw(write(text.encode(encoding)))


def test_big_endian_marks(write):
  for mark, name in ((b'\xfe\xff', 'UTF-16'), (b'\0\0\xfe\xff', 'UTF-32')):
    with pytest.raises(ConfigError, match=f'is {name}, as its byte order mark'):
      list(text_lines.read_text_blocks(write(mark + b'\0a')))


def test_what_is_compressed_or_a_document_is_said(write):
  for head, kind in ((b'\x1f\x8b\x08', 'gzip'), (b'PK\x03\x04', 'zip archive'), (b'%PDF-1.7', 'PDF file')):
    with pytest.raises(ConfigError, match=rf'a\.txt is no text but .*{kind}'):
      raw(write(head + b'more'))


def test_utf8_is_not_mistaken(write):
  for text in (LATIN, RUSSIAN, CHINESE, 'a\0b', 'a\0bc\0d' * 500, 'BZh is a word', '%PDF- is a sign', '\0' * 50, 'x'):
    text_lines.check_encoding('a.txt', text.encode())
  for seed in range(20):
    chance = random.Random(seed)
    text_lines.check_encoding('a.txt', ''.join(chance.choices('abc \n\0é', k=4000)).encode())


def test_a_byte_that_is_no_utf8_is_said_with_line_and_offset(write):
  path = write(b'\xef\xbb\xbfGood\r\nlines\r\nbad \xff one\n')
  *good, bad = text_lines.read_text_lines(path)
  assert [text_lines.decode_line(path, 1, line) for line in good] == ['Good', 'lines']
  with pytest.raises(ConfigError, match=r'not UTF-8: byte 0xff at offset 20; convert it \(line 3; invalid start byte'):
    text_lines.decode_line(path, 3, bad)
  assert list(text_lines.read_decoded(path, 'replace')) == ['Good', 'lines', 'bad \ufffd one']


def test_what_was_added_in_another_encoding_is_said_with_its_place(write):
  path = write(b'Good line\n' * 500 + 'Added later.\nAnd more.\n'.encode('utf-16-le'))
  *_, added, _, _ = text_lines.read_text_lines(path)
  with pytest.raises(
    ConfigError, match=r'a\.txt is no text from offset 5000 on \(line 501\): 12 of the 24 bytes there'
  ):
    text_lines.decode_line(path, 501, added, 'replace')
  assert text_lines.decode_line(path, 1, text_lines.TextLine(0, b'one\0 in many')) == 'one\0 in many'
