"""Where the cache is."""

import os

from switch_jax.folders.cache import cache_directory


def test_where_the_cache_is(monkeypatch, tmp_path):
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))
  assert cache_directory() == tmp_path / 'cache'
  monkeypatch.delenv('SWITCH_JAX_CACHE')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  assert cache_directory() == tmp_path / 'xdg' / 'switch_jax'
  monkeypatch.delenv('XDG_CACHE_HOME')
  assert str(cache_directory()) == os.path.expanduser('~/.cache/switch_jax')
