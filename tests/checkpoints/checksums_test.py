"""A file that is missing or has another size is found, wherever it lies."""

import json
import os

import pytest
from etils import epath

from switch_jax.checkpoints.file_sizes import check_sizes, write_sizes


@pytest.fixture
def record(tmp_path):
  """The record of two folders; a third one is not part of it."""
  for name, size in (('state/a', 3), ('state/deep/er/b', 0), ('data/c', 5), ('other/d', 1)):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'x' * size)
  write_sizes(epath.Path(tmp_path / 'files.json'), ['state', 'data'])
  return epath.Path(tmp_path / 'files.json')


def test_what_is_recorded(record):
  assert json.loads(record.read_text()) == {'data/c': 5, 'state/a': 3, 'state/deep/er/b': 0}
  check_sizes(record)
  (record.parent / 'other' / 'd').unlink()
  check_sizes(record)


@pytest.mark.parametrize(
  ('harm', 'message'),
  [
    (lambda folder: os.remove(folder / 'state' / 'deep' / 'er' / 'b'), 'state/deep/er/b is missing'),
    (lambda folder: os.truncate(folder / 'data' / 'c', 2), 'data/c has 2 bytes, not 5'),
    (lambda folder: (folder / 'state' / 'deep' / 'er' / 'b').write_text('y'), 'b has 1 bytes, not 0'),
    (lambda folder: (folder / 'files.json').write_text('{"a'), 'Unterminated string'),
  ],
)
def test_harm_is_found(record, harm, message):
  harm(record.parent)
  with pytest.raises(ValueError, match=message):
    check_sizes(record)


def test_no_record(tmp_path):
  with pytest.raises(OSError, match=r'files\.json'):
    check_sizes(epath.Path(tmp_path / 'files.json'))
