"""The cache: what can be made again (corpora, vocabularies, compiled programs)."""

import os
import pathlib


def cache_directory() -> pathlib.Path:
  """Returns where the cache is: $SWITCH_JAX_CACHE, else switch_jax in $XDG_CACHE_HOME or ~/.cache."""
  if own := os.environ.get('SWITCH_JAX_CACHE'):
    return pathlib.Path(own).expanduser()
  return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'switch_jax'
