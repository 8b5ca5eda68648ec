"""Models of the Hugging Face hub by name: found in the cache of huggingface_hub, which need not be installed.

The cache is `models--OWNER--NAME/{refs/REVISION, snapshots/COMMIT/}`; a file of `refs` holds the commit.
"""

import importlib
import os
import pathlib
import re

from switch_jax.config import ConfigError, first_line

# OWNER/NAME or OWNER/NAME@REVISION, as the hub allows them.
_NAME = re.compile(r'(?P<owner>\w[\w.-]{0,95})/(?P<name>\w[\w.-]{0,95})(@(?P<revision>\w[\w./-]{0,199}))?', re.ASCII)
_FILES = ('*.json', '*.safetensors', 'spiece.model')
_WEIGHTS = ('model.safetensors', 'model.safetensors.index.json')


def local_folder(path: str | os.PathLike[str]) -> str:
  """Returns the folder of a Hugging Face checkpoint.

  A snapshot in the cache is taken as it is: whether the hub has a newer one is not asked.

  Args:
    path: a local folder, which comes back as it is, or else a model of the hub: `google/switch-base-8`, with a branch,
      a tag or a commit `google/switch-base-8@main`.

  Raises:
    ConfigError: it has the form of a name, and is neither in the cache nor can be downloaded.
  """
  path = os.fspath(path)
  match = _NAME.fullmatch(path)
  if match is None or os.path.exists(path):
    return path
  repository, revision = f'{match["owner"]}/{match["name"]}', match['revision'] or 'main'
  return _in_cache(match, revision) or _download(repository, revision)


def is_name(path: str) -> bool:
  """Whether a path has the form of a model's name on the hub."""
  return _NAME.fullmatch(path) is not None


def cache() -> pathlib.Path:
  """Returns the folder of huggingface_hub's cache, found as that library does."""
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  home = os.environ.get('HF_HOME') or os.path.join(home, 'huggingface')
  return pathlib.Path(os.environ.get('HF_HUB_CACHE') or os.path.join(home, 'hub')).expanduser()


def _in_cache(match: re.Match[str], revision: str) -> str | None:
  """Returns the snapshot of a revision if its configuration and its weights are there."""
  folder = cache() / f'models--{match["owner"]}--{match["name"]}'
  reference = folder / 'refs' / revision
  commit = reference.read_text('utf-8', 'replace').strip() if reference.is_file() else revision
  if not re.fullmatch(r'\w+', commit):
    return None
  snapshot = folder / 'snapshots' / commit
  return str(snapshot) if (snapshot / 'config.json').exists() and _has_weights(snapshot) else None


def _has_weights(folder: pathlib.Path) -> bool:
  return any((folder / name).exists() for name in _WEIGHTS)


def _download(repository: str, revision: str) -> str:
  missing = f'huggingface:{repository} is no local folder, and {cache()} has no whole snapshot of its {revision}'
  elsewhere = 'or copy config.json and the safetensors into a folder and give huggingface:FOLDER.'
  try:
    huggingface_hub = importlib.import_module('huggingface_hub')
  except ImportError:
    raise ConfigError(f'{missing}; pip install huggingface_hub, which downloads it, {elsewhere}') from None
  try:
    folder = huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(_FILES))
  except Exception as error:  # no network, no such model, no rights: each has a class of its own there
    raise ConfigError(
      f'{missing}; it could not be downloaded ({first_line(error)}). See to the network or to the name, {elsewhere}'
    ) from error
  if not _has_weights(pathlib.Path(folder)):
    raise ConfigError(
      f'the hub has no safetensors of {repository} in {revision}, and pickles of PyTorch are not read. Name a revision '
      f"with them, huggingface:{repository}@REVISION (the hub's own conversions stand in refs/pr/NUMBER), or save it "
      'with transformers, save_pretrained(FOLDER), and give huggingface:FOLDER.'
    )
  return folder
