"""Data sets of the hub by name, with a library that fetches nothing."""

import pathlib
import sys
import types

import pytest

from switch_jax.config import ConfigError
from switch_jax.tasks import hub_tables


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))


def library(monkeypatch, load):
  monkeypatch.setitem(sys.modules, 'datasets', types.SimpleNamespace(load_dataset=load) if load else None)


def test_names():
  asked = 'imdb', 'stanfordnlp/imdb', 'hf://datasets/a/b-c', 'a/b/c', '/data', '*', 'texts.csv', 'gs://a/b', ''
  assert [hub_tables.name_of(pattern) for pattern in asked] == ['imdb', 'stanfordnlp/imdb', 'a/b-c', *[None] * 6]


def test_what_was_fetched_is_there_without_library_or_network(monkeypatch):
  def load(name):
    assert name == 'a/b'
    return types.SimpleNamespace(save_to_disk=lambda folder: pathlib.Path(folder).mkdir())

  library(monkeypatch, load)
  folder = hub_tables.folder_of('a/b', 'files', 'TASK_FILES')
  assert [path.name for path in folder.parent.iterdir()] == ['a--b']
  library(monkeypatch, None)
  assert hub_tables.folder_of('a/b', 'files', 'TASK_FILES') == folder


def test_what_to_put_where(monkeypatch):
  library(monkeypatch, None)
  with pytest.raises(ConfigError, match=r'pip install datasets; or, where there is a network: .*TASK_FILES=/some/dir'):
    hub_tables.folder_of('a', 'files', 'TASK_FILES')

  def load(name):
    raise ConnectionError('no way to the hub\nat all')

  library(monkeypatch, load)
  with pytest.raises(ConfigError, match=r"files is 'a', .*could it .* \(no way to the hub\); check the name, or"):
    hub_tables.folder_of('a', 'files', 'TASK_FILES')
