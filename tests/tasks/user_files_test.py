"""The user's files: told from those of last time. What is said of them is in the tests of who reads them."""

import hashlib
import os

from etils import epath

from switch_jax.tasks import user_files


def test_large_files_are_read_again_only_if_they_look_different(tmp_path, monkeypatch):
  monkeypatch.setattr(user_files, 'MAX_BYTES_TO_REREAD', 10)
  path = tmp_path / 'a.txt'
  path.write_text('some text of more than ten bytes')
  os.utime(path, (1, 1))
  first = user_files.identify([path])
  monkeypatch.setattr(user_files, '_contents', lambda path: {'read': 'again'})
  assert user_files.identify([path]) == first
  os.utime(path, (2, 2))
  assert user_files.identify([path]) == [{'read': 'again'}]


def test_the_ends_of_lines_count_in_files_that_are_no_text_only(tmp_path):
  for name in ('a.csv', 'a.parquet'):
    (tmp_path / name).write_bytes(b'PAR1\r\n')
  csv, parquet = user_files.identify([epath.Path(tmp_path / name) for name in ('a.csv', 'a.parquet')])
  assert csv == {'name': 'a.csv', 'size': 5, 'sha256': hashlib.sha256(b'PAR1\n').hexdigest()}
  assert parquet == {'name': 'a.parquet', 'size': 6, 'sha256': hashlib.sha256(b'PAR1\r\n').hexdigest()}


def test_patterns_and_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('b.csv', 'a.csv', 'c[1].csv'):
    (tmp_path / name).write_text('x')
  found = user_files.matches('*.csv', 'a setting')
  assert [path.name for path in found] == ['a.csv', 'b.csv', 'c[1].csv']
  assert user_files.matches('c[1].csv', 'a setting') == found[2:]
  assert user_files.check_files([*found, epath.Path(tmp_path)], '*', 'a setting', ('.csv', '.tsv')) == found
