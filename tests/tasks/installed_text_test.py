"""Packages are found without being imported, and named where they are missing."""

import importlib
import sys

import pytest

from switch_jax.config import ConfigError
from switch_jax.tasks import installed_text

BROKEN = 'raise RuntimeError("nothing of it is to be run")'


@pytest.fixture
def site(tmp_path, monkeypatch):
  """A folder of packages: `brought_one`, of the distribution `brought-one` 2.5, and `brought_module`, a single file."""
  (tmp_path / 'brought_one').mkdir()
  (tmp_path / 'brought_one' / '__init__.py').write_text(BROKEN)
  (tmp_path / 'brought_module.py').write_text(BROKEN)
  (tmp_path / 'brought_one-2.5.dist-info').mkdir()
  (tmp_path / 'brought_one-2.5.dist-info' / 'METADATA').write_text('Name: brought-one\nVersion: 2.5\n')
  monkeypatch.syspath_prepend(tmp_path)
  importlib.invalidate_caches()
  return tmp_path


def test_the_folder_of_a_package(site):
  assert installed_text.package_folder('brought_one', 'brought-one') == site / 'brought_one'
  assert 'brought_one' not in sys.modules
  for module in ('brought_nothing', 'brought_module'):  # a module that is no package has no data
    with pytest.raises(ConfigError, match=r'package some-name, which is not installed; .*\(or pip install some-name\)'):
      installed_text.package_folder(module, 'some-name')


def test_whether_there_is_a_module(site):
  assert installed_text.is_installed('brought_one')
  assert installed_text.is_installed('brought_module')
  assert not installed_text.is_installed('brought_nothing')
  assert not installed_text.is_installed('brought_nothing.inside')


def test_only_the_first_package_must_be_there(site):
  assert installed_text.package_folders({'brought_one': 'brought-one', 'brought_nothing': 'brought-nothing'}) == {
    'brought-one': site / 'brought_one'
  }
  with pytest.raises(ConfigError, match='brought-nothing, which is not installed'):
    installed_text.package_folders({'brought_nothing': 'brought-nothing', 'brought_one': 'brought-one'})


def test_versions(site):
  assert installed_text.version('brought-one') == '2.5'
  assert installed_text.version('brought-nothing') == 'unknown'


def test_data_files(site):
  (site / 'brought_one' / 'data.bin').write_bytes(b'abc')
  assert installed_text.read_bytes(site / 'brought_one' / 'data.bin', 'brought-one') == b'abc'
  with pytest.raises(ConfigError, match=r'none\.bin cannot be read \(No such file .*brought-one 2\.5 is installed'):
    installed_text.read_bytes(site / 'brought_one' / 'none.bin', 'brought-one')


def test_the_digest_of_contents():
  # FIPS 180-2, appendix B.1.
  assert installed_text.digest(b'abc') == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
