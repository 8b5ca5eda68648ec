"""Names of the hub: found in a cache that huggingface_hub would have made, without that library."""

import sys
import types

import pytest

from switch_jax import convert, interop
from switch_jax.config import ConfigError
from switch_jax.interop import hub
from switch_jax.interop.initial import describe_checkpoint

COMMIT = '92fe2d22b024d9937146fe097ba3d3a7ba146e1b'


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache."""
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)  # cannot be imported
  return tmp_path / 'cache'


@pytest.fixture
def snapshot(cache, tmp_path, sparse_model, random_params, write_huggingface):
  """google/switch-base-8, as the library lays it out: links to blobs, named by a file of refs."""
  written = write_huggingface(tmp_path / 'written', random_params(sparse_model), sparse_model)
  model = cache / 'models--google--switch-base-8'
  folder = model / 'snapshots' / COMMIT
  for place in (folder, model / 'blobs', model / 'refs' / 'refs' / 'pr'):
    place.mkdir(parents=True)
  for i, file in enumerate(written.iterdir()):
    file.rename(model / 'blobs' / str(i))
    (folder / file.name).symlink_to(f'../../blobs/{i}')
  for revision in ('main', 'refs/pr/7'):
    (model / 'refs' / revision).write_text(COMMIT)
  return folder


def test_a_snapshot_in_the_cache(snapshot, sparse_model, tmp_path):
  for name in ('google/switch-base-8', 'google/switch-base-8@refs/pr/7', f'google/switch-base-8@{COMMIT}'):
    assert hub.local_folder(name) == str(snapshot)
  assert interop.load_config('huggingface', 'google/switch-base-8').vocab_size == sparse_model.vocab_size
  assert describe_checkpoint('huggingface:google/switch-base-8', 'x').model.moe.num_experts == 3
  assert convert.main(['--from=huggingface:google/switch-base-8', f'--to=switch_jax:{tmp_path}/ours']) == 0
  assert interop.load_config('switch_jax', tmp_path / 'ours').moe.num_experts == 3


def test_where_the_cache_is(monkeypatch):
  for name in ('HF_HUB_CACHE', 'HF_HOME', 'XDG_CACHE_HOME'):
    monkeypatch.delenv(name, raising=False)
  assert str(hub.cache()).endswith('/.cache/huggingface/hub')
  for name, path in (('XDG_CACHE_HOME', '/x/huggingface/hub'), ('HF_HOME', '/x/hub'), ('HF_HUB_CACHE', '/x')):
    monkeypatch.setenv(name, '/x')
    assert str(hub.cache()) == path


def test_a_folder_of_that_name_comes_first(snapshot, tmp_path, monkeypatch):
  (tmp_path / 'google' / 'switch-base-8').mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  assert hub.local_folder('google/switch-base-8') == 'google/switch-base-8'
  for path in ('/google/switch-base-8', '../google/other', 'a/b/c', 'alone', 'gs://google/b'):
    assert hub.local_folder(path) == path


def fails(name, message):
  with pytest.raises(ConfigError, match=message) as caught:
    hub.local_folder(name)
  assert '\n' not in str(caught.value)


def test_what_is_missing_is_said_in_one_line(snapshot):
  fails(
    'google/switch-base-8@v2', 'no whole snapshot of its v2; pip install huggingface_hub, which downloads it, or copy'
  )
  (snapshot / 'model.safetensors').unlink()
  fails('google/switch-base-8', 'huggingface:google/switch-base-8 is no local folder, and .*cache .* no whole snapshot')


def test_a_reference_that_leads_elsewhere(cache, tmp_path):
  (cache / 'models--a--b' / 'refs').mkdir(parents=True)
  (cache / 'models--a--b' / 'refs' / 'main').write_text('../../../elsewhere')
  fails('a/b', 'pip install huggingface_hub')


def test_downloads_where_the_library_is(cache, tmp_path, monkeypatch):
  asked = {}

  def download(repository, **options):
    asked[repository] = options
    return str(tmp_path)

  monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(snapshot_download=download))
  fails('a/b@v1', 'the hub has no safetensors of a/b in v1')
  (tmp_path / 'model.safetensors').touch()
  assert hub.local_folder('a/b@v1') == str(tmp_path)
  assert asked['a/b']['revision'] == 'v1'
  assert '*.safetensors' in asked['a/b']['allow_patterns']

  def fail(repository, **options):
    raise OSError('no network\nat all')

  monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(snapshot_download=fail))
  fails('a/b', r'could not be downloaded \(no network\)')


def test_what_has_the_form_of_a_name():
  assert [hub.is_name(path) for path in ('google/switch-base-8', 'a/b@main', 'runs', '/a/b', 'a/b/c')] == [
    True, True, False, False, False,
  ]  # fmt: skip
