"""Files of a folder that others made: what is opened is a regular file, and lies in that folder.

Opening a pipe waits for whoever writes it, a device may do anything, and a link or a name with `..` leads to files
that were never meant. Only what is regular and inside is opened.
"""

import os
import pathlib
import stat
from collections.abc import Iterator

from switch_jax.config import ConfigError

_KINDS = (
  (stat.S_ISDIR, 'a folder'),
  (stat.S_ISFIFO, 'a pipe'),
  (stat.S_ISSOCK, 'a socket'),
  (stat.S_ISCHR, 'a device'),
  (stat.S_ISBLK, 'a device'),
)


def regular_file(folder: str | os.PathLike[str], name: str) -> pathlib.Path:
  """Returns the path of a file in a folder, which is not there or is a regular file inside the folder.

  Args:
    folder: local.
    name: relative to it. What it links to must be inside too; of a snapshot in Hugging Face's cache, in its blobs.

  Raises:
    ConfigError: it is a folder, a pipe, a socket or a device, or lies elsewhere.
  """
  path = pathlib.Path(folder) / name
  if not name or os.path.isabs(name) or '..' in name.split('/') or '\0' in name:
    raise ConfigError(
      f'{folder} names the file {name!r}; names must be relative and stay in the folder. Copy it again.'
    )
  try:
    status = path.stat()
    _check_place(pathlib.Path(folder), path)
  except FileNotFoundError:
    return path
  except OSError as error:  # a circle of links, a name too long
    raise ConfigError(f'{path} cannot be opened ({error.strerror}); copy the folder again.') from error
  if not stat.S_ISREG(status.st_mode):
    raise ConfigError(f'{path} is {_kind(status.st_mode)}; it must be a regular file. Copy the folder again.')
  return path


def check_tree(folder: str | os.PathLike[str]) -> int:
  """Checks that everything below a local folder is a folder or a regular file inside it; returns the files' bytes.

  Raises:
    ConfigError: something is not.
  """
  return sum(_sizes(pathlib.Path(folder), pathlib.Path(folder)))


def _sizes(root: pathlib.Path, folder: pathlib.Path) -> Iterator[int]:
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        if entry.is_dir(follow_symlinks=False):
          yield from _sizes(root, pathlib.Path(entry.path))
        else:
          path = regular_file(root, os.path.relpath(entry.path, root))
          if not path.exists():
            raise ConfigError(f'{path} is a link to nothing; copy the folder again with what its links name.')
          yield path.stat().st_size
  except (OSError, RecursionError) as error:
    raise ConfigError(f'{folder} cannot be read ({error}); see to its rights, or copy it again.') from error


def _check_place(folder: pathlib.Path, path: pathlib.Path) -> None:
  root, real = folder.resolve(), path.resolve()
  # The cache of huggingface_hub: snapshots/<revision>/config.json links to blobs/<digest>.
  roots = [root, root.parent.parent / 'blobs'] if root.parent.name == 'snapshots' else [root]
  if not any(real.is_relative_to(place) for place in roots):
    raise ConfigError(
      f'{path} links to {real}, outside the folder; only files inside are read. Copy the folder with what its links '
      'name (cp -rL).'
    )


def _kind(mode: int) -> str:
  return next((words for test, words in _KINDS if test(mode)), 'no file')
