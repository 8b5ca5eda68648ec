"""The folders of steps: whether they can be made, and what is done with those that are no complete steps."""

import logging
import os
from collections.abc import Iterable

import orbax.checkpoint as ocp
from etils import epath

from switch_jax.config import ConfigError, first_line
from switch_jax.folders.model_dir import COMMITTED, CONFIG, DATA, FILES, STATE
from switch_jax.folders.remote import is_remote, is_storage_error

_TEMPORARY = '.orbax-checkpoint-tmp'
_logger = logging.getLogger('switch_jax.checkpoints')


class CheckpointError(ConfigError):
  """A checkpoint that cannot be written or read back. The message names the step, the cause and the remedy."""


def remove_leftovers(directory: epath.Path) -> None:
  """Removes what runs have left that were killed while they saved or pruned a step; the owner calls it, on one host."""
  for path in directory.iterdir():
    number, mark, _ = path.name.partition(_TEMPORARY)
    if number.isdecimal() and (mark or _is_leftover(path)):
      path.rmtree()


def remove_steps(paths: Iterable[epath.Path]) -> None:
  """Removes complete steps. What cannot be removed is said: no run ends for that, and a later one removes the rest."""
  for path in paths:
    try:
      # Without this file the folder is no complete step, whatever is left of it if the run is killed right here.
      (path / FILES).unlink(missing_ok=True)
      path.rmtree()
    except Exception as error:
      if not is_storage_error(error):
        raise
      # A store that was asked twice, because its first answer was lost, says that there is nothing.
      if (path / FILES).exists() or any(path.glob('*')):
        _logger.warning('%s is not to be kept and could not be removed: %s.', path, first_line(error).rstrip('.'))


def move_aside(path: epath.Path) -> None:
  """Makes room for a step whose folder exists without being complete; nothing in it is deleted.

  Raises:
    CheckpointError: it lies in an object store, where a folder is renamed by copying all that is in it.
  """
  if not path.exists():
    return
  if is_remote(path):
    raise CheckpointError(f'{path} is no complete checkpoint and stands in the way of one; remove it or move it away.')
  taken = {p.name for p in path.parent.iterdir()}
  names = (f'{path.name}.incomplete' + (f'_{i}' if i else '') for i in range(len(taken) + 1))
  aside = path.parent / next(name for name in names if name not in taken)
  path.rename(aside)
  _logger.warning('%s was no complete checkpoint and stood in the way; it is now %s.', path, aside)


def _is_leftover(path: epath.Path) -> bool:
  """Whether a step's folder is one that Orbax had not committed, or that was being pruned; with nothing else in it."""
  names = {p.name for p in path.iterdir()} if path.is_dir() else set()
  ours = {STATE, DATA, CONFIG, FILES, '_CHECKPOINT_METADATA', COMMITTED}
  if is_remote(path) and not names:
    return True  # its folder is all that was made, an object of its own on some stores
  is_ours = bool(names & ours) and names <= ours
  return is_ours and not (FILES in names and ocp.utils.is_checkpoint_finalized(path))


def require_writable(model_dir: epath.Path, directory: epath.Path) -> None:
  """Makes both folders, or raises a `ConfigError` that says why they cannot be made or written to."""
  remedy = 'MODEL_DIR must be a folder that can be written to. Set --gin.MODEL_DIR to another one.'
  # TensorFlow's client would try for minutes to make a folder in a bucket that is not there.
  bucket = epath.Path('/'.join(os.fspath(model_dir).split('/')[:3]))
  for path in (model_dir, directory):
    try:
      if is_remote(path) and not bucket.exists():
        raise ConfigError(f'there is no bucket {bucket}, or it may not be read; {remedy}')
      if path.exists() and not path.is_dir():
        raise ConfigError(f'{path} is a file; {remedy}')
      path.mkdir(parents=True, exist_ok=True)
    except Exception as error:
      if not is_storage_error(error):
        raise
      raise ConfigError(f'{path} cannot be made ({first_line(error)}); {remedy}') from error
    if not is_remote(path) and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
      raise ConfigError(f'{path} cannot be written to; {remedy}')
