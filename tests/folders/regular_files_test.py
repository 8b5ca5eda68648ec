"""Only regular files inside a folder are opened: nothing waits, nothing outside is read."""

import os
import socket

import pytest

from switch_jax.config import ConfigError
from switch_jax.folders.regular_files import check_tree, regular_file


@pytest.fixture
def folder(tmp_path):
  inside = tmp_path / 'inside'
  (inside / 'below').mkdir(parents=True)
  (inside / 'below/file').write_text('12345')
  (tmp_path / 'outside').write_text('secret')
  return inside


@pytest.mark.parametrize('name', ['', '/etc/passwd', '../outside', 'below/../../outside', 'a\0b'])
def test_names_that_lead_elsewhere(folder, name):
  with pytest.raises(ConfigError, match='names must be relative and stay in the folder'):
    regular_file(folder, name)


def test_kinds_of_files(folder, monkeypatch):
  os.mkfifo(folder / 'pipe')
  monkeypatch.chdir(folder)
  with socket.socket(socket.AF_UNIX) as made:
    made.bind('socket')
  for name, kind in (('pipe', 'a pipe'), ('socket', 'a socket'), ('below', 'a folder')):
    with pytest.raises(ConfigError, match=f'{name} is {kind}; it must be a regular file'):
      regular_file(folder, name)
  with pytest.raises(ConfigError, match='it must be a regular file'):
    check_tree(folder)


def test_links(folder, tmp_path):
  (folder / 'here').symlink_to('below/file')
  assert regular_file(folder, 'here') == folder / 'here'
  assert check_tree(folder) == 10
  (folder / 'there').symlink_to(tmp_path / 'outside')
  (folder / 'circle').symlink_to('circle')
  (folder / 'nothing').symlink_to('nowhere')
  with pytest.raises(ConfigError, match=r'there links to .*outside, outside the folder; .*cp -rL'):
    regular_file(folder, 'there')
  with pytest.raises(ConfigError, match='circle cannot be opened'):
    regular_file(folder, 'circle')
  assert not regular_file(folder, 'nothing').exists()
  (folder / 'there').unlink()
  (folder / 'circle').unlink()
  with pytest.raises(ConfigError, match='nothing is a link to nothing'):
    check_tree(folder)
  (tmp_path / 'link').symlink_to(folder)  # the folder itself may be one
  assert regular_file(tmp_path / 'link', 'here').read_text() == '12345'


def test_the_cache_of_hugging_face(tmp_path):
  snapshot = tmp_path / 'models--x' / 'snapshots' / 'abc'
  snapshot.mkdir(parents=True)
  (tmp_path / 'models--x/blobs').mkdir()
  (tmp_path / 'models--x/blobs/123').write_text('{}')
  (snapshot / 'config.json').symlink_to('../../blobs/123')
  assert regular_file(snapshot, 'config.json').read_text() == '{}'
  (tmp_path / 'models--x/refs').write_text('')
  (snapshot / 'refs').symlink_to('../../refs')
  with pytest.raises(ConfigError, match='outside the folder'):
    regular_file(snapshot, 'refs')
