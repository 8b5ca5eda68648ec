"""A file that is missing, has another size or other bytes is found, wherever it lies; so is a damaged record."""

import json
import os

import pytest
import xxhash
from etils import epath

from switch_jax.checkpoints import checksums
from switch_jax.checkpoints.checksums import File


@pytest.fixture
def step(tmp_path):
  """Returns a folder with a record of the files in it; blocks are of 4 bytes."""
  for name, size in (('state/a', 3), ('state/deep/er/b', 0), ('data/c', 9)):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(range(size)))
  folder = epath.Path(tmp_path)
  checksums.write_record(folder / 'files.json', checksums.measure(folder, checksums.list_files(folder)))
  return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(checksums, 'BLOCK_BYTES', 4)
  monkeypatch.setattr(checksums, '_PIECE_BYTES', 3)


def check(step):
  checksums.check(step, checksums.read_record(step / 'files.json'))


def test_what_is_recorded(step):
  recorded = checksums.read_record(step / 'files.json')
  assert {name: file.size for name, file in recorded.items()} == {'data/c': 9, 'state/a': 3, 'state/deep/er/b': 0}
  blocks = (bytes((0, 1, 2, 3)), bytes((4, 5, 6, 7)), bytes((8,)))
  expected = xxhash.xxh3_128(b''.join(xxhash.xxh3_128(block).digest() for block in blocks)).hexdigest()
  assert recorded['data/c'].checksum == expected
  check(step)
  (step / 'other').write_text('is nobody')
  check(step)


def test_progress_is_told_in_bytes(step):
  told = []
  checksums.check(step, checksums.read_record(step / 'files.json'), told.append)
  assert sorted(told) == [1, 3, 4, 4]


@pytest.mark.parametrize(
  ('harm', 'message'),
  [
    (lambda folder: os.remove(folder / 'state' / 'deep' / 'er' / 'b'), 'state/deep/er/b is missing'),
    (lambda folder: os.truncate(folder / 'data' / 'c', 2), 'data/c has 2 bytes, not 9'),
    (lambda folder: (folder / 'state' / 'deep' / 'er' / 'b').write_text('y'), 'b has 1 bytes, not 0'),
    (lambda folder: (folder / 'state' / 'a').write_bytes(b'\0\1\3'), 'state/a has other bytes than were written'),
    (lambda folder: (folder / 'files.json').write_text('{"a'), 'files.json is damaged: Unterminated string'),
    (lambda folder: (folder / 'files.json').write_text('[1]'), 'files.json is damaged'),
    (lambda folder: (folder / 'files.json').write_bytes(b'\xff'), 'files.json is damaged'),
  ],
)
def test_harm_is_found(step, harm, message):
  harm(step)
  with pytest.raises(ValueError, match=message):
    check(step)


def test_every_bit_of_the_record_counts(step):
  record = step / 'files.json'
  written = record.read_bytes()
  for bit in range(0, 8 * len(written), 7):
    damaged = bytearray(written)
    damaged[bit // 8] ^= 1 << bit % 8
    record.write_bytes(damaged)
    with pytest.raises(ValueError, match=r'files\.json'):
      check(step)


def test_records_of_older_versions_are_sizes_only(step):
  (step / 'files.json').write_text(json.dumps({'state/a': 3, 'data/c': 9}))
  assert checksums.read_record(step / 'files.json') == {'state/a': File(3, None), 'data/c': File(9, None)}
  (step / 'state' / 'a').write_bytes(b'xyz')
  check(step)
  (step / 'state' / 'a').write_bytes(b'xy')
  with pytest.raises(ValueError, match='state/a has 2 bytes, not 3'):
    check(step)


def test_checksums_of_another_kind_are_named(step):
  text = (step / 'files.json').read_text().replace('xxh3_128 of', 'sha3 of')
  (step / 'files.json').write_text(text)
  with pytest.raises(ValueError, match="checksums are 'sha3 of 64 MiB blocks', which this version does not know"):
    check(step)


def test_no_record(tmp_path):
  with pytest.raises(OSError, match=r'files\.json'):
    checksums.read_record(epath.Path(tmp_path / 'files.json'))
