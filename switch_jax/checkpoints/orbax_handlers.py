"""What Orbax is told: who writes the files beside arrays, when a host's arrays are summed, what it must not change."""

import dataclasses
from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp
from etils import epath


class FilesHandler(ocp.CheckpointHandler):
  """Lets a function write the files of a step that are not arrays.

  Orbax calls it before the arrays start to be written, and commits its files together with them.
  """

  def save(self, directory: epath.Path, args: 'FilesSave') -> None:
    args.write(directory)

  def restore(self, directory: epath.Path, args: Any = None) -> None:
    raise NotImplementedError('The files are read by CheckpointStore.read_config and restore_position.')


@ocp.args.register_with_handler(FilesHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class FilesSave(ocp.args.CheckpointArgs):
  write: Callable[[epath.Path], None]


class ArraysHandler(ocp.StandardCheckpointHandler):
  """Orbax's own handler of arrays, which calls a function on every host once that host has written its arrays.

  The function runs in Orbax's background thread, before the hosts wait for each other and the first one commits.
  """

  async def async_save(self, directory: Any, *, args: 'ArraysSave') -> list[Any]:
    # Orbax waits for these one after the other.
    return [*(await super().async_save(directory, args=args) or []), _Afterwards(args.written)]


@ocp.args.register_with_handler(ArraysHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class ArraysSave(ocp.args.StandardSave):
  written: Callable[[], None] = lambda: None


class _Afterwards:
  """A `Future` of Orbax whose result is the call of a function."""

  def __init__(self, function: Callable[[], None]):
    self._function = function

  def result(self, timeout: int | None = None) -> None:
    del timeout
    self._function()


class SettledMetadata:
  """Orbax's writer of `_CHECKPOINT_METADATA`, without the time of the commit.

  Orbax writes that time when all files have been summed. Without it the file does not change any more.
  """

  def __init__(self) -> None:
    self._store = ocp.metadata.metadata_store(enable_write=True, blocking_write=True)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._store, name)

  def update(self, file_path: epath.PathLike, **fields: Any) -> None:
    fields.pop('commit_timestamp_nsecs', None)
    if fields:
      self._store.update(file_path, **fields)
