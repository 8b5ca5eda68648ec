"""From one format to another, a piece of a tensor at a time; whole or not there; continued after a kill.

Everything is written into `<target>.converting`, which is renamed at the very end. Beside the output it holds what is
being converted and which tensors are done, so that the same command goes on where a killed one stopped.

An object store has no rename, so there the output is written where it belongs, and last the file without which it is no
checkpoint: `commit_success.txt` of a step, T5X's index, Hugging Face's config.json.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from etils import epath

from switch_jax.config import ConfigError, ModelConfig, first_line
from switch_jax.folders import checked_json
from switch_jax.folders.metric_lines import replace_file
from switch_jax.folders.regular_files import regular_file
from switch_jax.folders.remote import is_remote, is_storage_error
from switch_jax.interop import huggingface_files, names
from switch_jax.interop.huggingface_writer import HuggingFaceWriter
from switch_jax.interop.own_writer import OwnWriter
from switch_jax.interop.stored import Checkpoint, StoredArray
from switch_jax.interop.t5x_writer import T5xWriter

WORK_SUFFIX = '.converting'
_PLAN, _DONE, _OUTPUT = 'plan.json', 'done.txt', 'output'


class Writer(Protocol):
  """What knows a format. Outputs are arrays to be written, rows in rising order.

  `outlives_kill` says whether what `write` has written is still there for the next process.
  """

  outputs: Mapping[str, StoredArray]
  outlives_kill: bool

  def row_multiple(self, name: str) -> int: ...

  def write(self, name: str, start: int, block: np.ndarray) -> None: ...

  def end(self, name: str) -> None: ...

  def finish(self) -> None: ...


def check_target(path: str) -> epath.Path:
  """Returns the folder to be made. Raises a `ConfigError` if it exists, or cannot be made."""
  in_the_way = f'the target {path} exists; nothing is overwritten. Name another folder, or remove it.'
  if is_remote(path):
    remote = epath.Path(path)
    try:
      # What a killed conversion has left stands there already; whether it was this one is seen when it goes on.
      if remote.exists() and not (_work_folder(remote) / _PLAN).exists():
        raise ConfigError(in_the_way)
      _work_folder(remote).mkdir(parents=True, exist_ok=True)
    except Exception as error:
      if not is_storage_error(error):
        raise
      raise ConfigError(f'the target {path} cannot be made: {first_line(error)}.') from error
    return remote
  target = epath.Path(os.path.abspath(path))
  if target.exists() or os.path.islink(target):
    raise ConfigError(in_the_way)
  if not target.parent.is_dir():
    nearest = next(p for p in target.parents if p.exists())
    if not nearest.is_dir():
      raise ConfigError(f'the target {path} lies below {nearest}, which is a file.')
  nearest = next(p for p in target.parents if p.is_dir())
  if not os.access(nearest, os.W_OK | os.X_OK):
    raise ConfigError(f'the target {path} cannot be made: {nearest} cannot be written to.')
  return target


def _work_folder(target: epath.Path) -> epath.Path:
  return target.parent / (target.name + WORK_SUFFIX)


def make_writer(
  format: str,
  folder: epath.Path,
  checkpoint: Checkpoint,
  config: ModelConfig,
  *,
  dtype: str,
  record: Mapping[str, Any],
  max_shard_bytes: int,
) -> Writer:
  """Returns the writer of a format.

  Raises:
    ConfigError: the format cannot represent the model.
  """
  if format != 'switch_jax':
    names.require_names(config)
    if format == 't5x' or not config.is_decoder_only:  # else it is a Llama or Mixtral
      names.require_encoder(config)
  if format == 't5x':
    return T5xWriter(folder, checkpoint, dtype)
  if format == 'huggingface':
    return HuggingFaceWriter(folder, checkpoint, config, dtype, max_shard_bytes, huggingface_files.row_length(record))
  return OwnWriter(folder, checkpoint, config, record)


def convert(
  target: epath.Path,
  make: Callable[[epath.Path], Writer],
  description: Mapping[str, Any],
  progress: Callable[[int, int, str], None] = lambda done, total, name: None,
  files: Mapping[str, bytes] = MappingProxyType({}),
) -> int:
  """Writes a checkpoint.

  Args:
    target: the folder that appears once everything is in it.
    make: returns the writer into a folder. It must not touch the disk before its `write`.
    description: what is converted and how, plain JSON; only the same conversion is continued.
    progress: called with the bytes done, those in all and the tensor at hand.
    files: what stands in the folder beside what the format asks for, content by name.

  Returns:
    The number of tensors that an earlier, killed conversion had finished.

  Raises:
    ConfigError: a tensor cannot be read (what was written is removed), or another conversion to the same target
      was begun.
  """
  work = _work_folder(target)
  output = target if is_remote(target) else work / _OUTPUT
  writer = make(output)
  outputs = writer.outputs
  shapes = json.dumps({name: array.shape for name, array in outputs.items()}, sort_keys=True)
  plan = {**description, 'tensors': hashlib.sha256(shapes.encode()).hexdigest()}
  begun = _continue(work, plan)
  done = begun if writer.outlives_kill else set()
  sizes = {name: 4 * int(np.prod(array.shape)) for name, array in outputs.items()}
  total, bytes_done = sum(sizes.values()), sum(sizes[name] for name in done if name in sizes)
  try:
    with (work / _DONE).open('a') as log:
      for name, array in outputs.items():
        if name in done:
          continue
        for start, block in _pieces(array, writer.row_multiple(name)):
          writer.write(name, start, block)
          bytes_done += block.nbytes
          progress(bytes_done, total, name)
        writer.end(name)
        log.write(f'{name}\n')
        log.flush()
    for name, content in files.items():
      (output / name).write_bytes(content)
    writer.finish()
  except ConfigError:
    for folder in {work, output}:
      if folder.exists():
        folder.rmtree()
    raise
  except Exception as error:
    if not is_storage_error(error):
      raise
    raise ConfigError(
      f'{work} could not be written: {error}. What is done is kept there; see to the cause and run the same command.'
    ) from error
  if output != target:
    output.rename(target)
  work.rmtree()
  return len(done)


def _pieces(array: StoredArray, multiple: int):
  """Yields the first row and the values of pieces that suit both the file that is read and the one that is written."""
  if not array.shape or not array.shape[0]:
    yield 0, array.read()
    return
  rows = -(-max(array.chunk_rows, multiple, 1) // multiple) * multiple
  for start in range(0, array.shape[0], rows):
    yield start, array.rows(start, min(start + rows, array.shape[0]))


def _continue(work: epath.Path, plan: Mapping[str, Any]) -> set[str]:
  """Makes the folder to work in, or finds which tensors are done in it."""
  plan = json.loads(json.dumps(plan))
  if (work / _PLAN).exists():
    try:
      begun = checked_json.read(work, _PLAN)
    except ConfigError:
      begun = None
    if begun != plan:
      raise ConfigError(
        f'{work} holds the beginning of another conversion to the same target, or the source has changed since; remove '
        'that folder to begin anew.'
      )
    done = regular_file(work, _DONE)
    text = done.read_bytes().decode('utf-8', 'replace') if done.exists() else ''
    return set(text.split('\n')[:-1])  # a line that was cut off is not done
  if work.exists() and any(p.name not in (_PLAN + '.tmp', _OUTPUT) for p in work.iterdir()):
    raise ConfigError(f'{work} is in the way: conversions write there first. Remove it.')
  (work / _OUTPUT).mkdir(parents=True, exist_ok=True)
  replace_file(work / _PLAN, json.dumps(plan, indent=2))
  return set()


def fingerprint(path: str) -> str:
  """Returns a digest of the names, sizes and times of a local source's files; empty for a remote one."""
  root = pathlib.Path(path)
  if '://' in path or not root.exists():
    return ''
  digest = hashlib.sha256()
  for file in sorted(root.rglob('*')) if root.is_dir() else [root]:
    if file.is_file():
      status = file.stat()
      digest.update(f'{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n'.encode())
  return digest.hexdigest()
