"""Data sets of the Hugging Face hub by name, as folders that the library `datasets` has saved.

One that was fetched before lies in the cache, and neither library nor network is asked for it again.
"""

import importlib
import re

from etils import epath

from switch_jax.config import ConfigError, first_line
from switch_jax.data import corpus
from switch_jax.folders.cache import cache_directory

# NAME or OWNER/NAME, as the hub allows them, perhaps as its own paths begin.
_NAME = re.compile(r'(?:hf://(?:datasets/)?)?([\w.-]+(?:/[\w.-]+)?)', re.ASCII)


def name_of(pattern: str) -> str | None:
  """Returns the name that a text can be on the hub; None where it has another form, or a suffix as files have."""
  match = _NAME.fullmatch(pattern)
  return match[1] if match and not epath.Path(pattern).suffix else None


def folder_of(name: str, setting: str, macro: str) -> epath.Path:
  """Returns the folder of a data set, fetching it if it is not in the cache.

  Args:
    name: of the data set.
    setting: the field that names it, for messages.
    macro: that sets it.

  Raises:
    ConfigError: it cannot be fetched.
  """
  folder = cache_directory() / 'hub' / name.replace('/', '--')
  if folder.exists():
    return epath.Path(folder)
  missing = f'{setting} is {name!r}, and there is no such file or folder'
  remedy = (
    f"where there is a network: python -c \"import datasets; datasets.load_dataset('{name}')"
    f".save_to_disk('/some/dir')\", then copy that folder here and set --gin.{macro}=/some/dir."
  )
  try:
    datasets = importlib.import_module('datasets')
  except ImportError:
    raise ConfigError(f'{missing}. A name on the Hugging Face hub wants pip install datasets; or, {remedy}') from None
  draft = corpus.make_draft_folder(folder.parent)
  try:
    datasets.load_dataset(name).save_to_disk(str(draft / folder.name))
  except Exception as error:  # no network, no such name, several configurations: each has a class of its own there
    raise ConfigError(
      f'{missing}, nor could it be had from the Hugging Face hub ({first_line(error)}); check the name, or, {remedy}'
    ) from error
  (draft / folder.name).replace(folder)
  draft.rmdir()
  return epath.Path(folder)
