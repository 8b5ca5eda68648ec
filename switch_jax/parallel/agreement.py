"""Hosts agree or nobody trains: what all processes of a run compare before anything is compiled."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from switch_jax.config import ConfigError, flatten
from switch_jax.config.validation import Checked
from switch_jax.parallel.hosts import exchange, name_processes

_PACKAGES = (
  *('switch_jax', 'jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'numpy'),
  *('tensorflow', 'tensorflow-text', 'seqio', 'sentencepiece'),
)

# Settings that may differ between the hosts of a run.
_LOCAL = {
  'data.text_files',  # where the text lies on this host; the digest of the corpus is compared
  'data.tables',  # likewise
  'data.vocabulary',  # likewise
  'data.cached_tasks_dir',  # a copy may lie on a disk of each host
  'data.prefetch',  # it changes memory and speed only
}


def differences(values: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns a line for every name whose values differ, with each value and the processes that have it.

  Args:
    values: what each process has, by name; a name that a process lacks counts as None.
  """
  lines = []
  for name in sorted({name for value in values for name in value}):
    holders: dict[str, list[int]] = {}
    for process, value in enumerate(values):
      holders.setdefault(json.dumps(value.get(name), sort_keys=True), []).append(process)
    if len(holders) > 1:
      parts = [f'{value} in {name_processes(held, len(values))}' for value, held in holders.items()]
      lines.append(f'{name} is {", ".join(parts)}')
  return lines


def require_agreement(name: str, values: Mapping[str, Any]) -> None:
  """Compares what must be the same in all processes of a run, by their store: nothing is compiled for it.

  Args:
    name: what is compared, in words.
    values: plain JSON by name.

  Raises:
    ConfigError: a process has something else; raised in all of them, with every difference.
  """
  if lines := differences(exchange(name, dict(values))):
    raise ConfigError(
      f'the processes of this run differ in {name}, so nothing was started: {"; ".join(lines)}. Give every process the '
      'same command and installation; only --process_id may differ.'
    )


def require_same_run(config: Checked) -> None:
  """Compares configuration, versions and devices of all processes; costs nothing with one.

  Args:
    config: of a run, an evaluation or predictions; it has a `model_dir`.

  Raises:
    ConfigError: as `require_agreement`.
  """
  if not jax.distributed.is_initialized():
    return
  compared = {name: value for name, value in flatten(config.to_json()).items() if name not in _LOCAL}
  if '://' not in compared['model_dir']:  # one folder may be spelled in two ways
    compared['model_dir'] = os.path.realpath(compared['model_dir'])
  require_agreement('configuration', compared)
  require_agreement('versions', versions())
  require_agreement('devices', {'number of local devices': jax.local_device_count(), 'devices': jax.device_count()})


def versions() -> dict[str, str | None]:
  """Returns the versions of everything that decides numbers."""
  found: dict[str, str | None] = {'python': platform.python_version()}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = None
  return found
