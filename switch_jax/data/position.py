"""Positions of the training data: exact, whatever the prefetch thread has run ahead.

A position is "n batches were handed out". The thread that makes the batches is ahead of that, and its iterators can
only be saved where they are. So it saves them every so many batches, always before it hands on the batch that follows
the saved place, and a position is the newest snapshot that is not past n, and how many batches lie between. Restoring
goes to the snapshot and drops those batches.
"""

import dataclasses
import json
import pathlib
import shutil
import threading
from collections.abc import Sequence
from typing import Self

from etils import epath

from switch_jax.data.streams import Streams, stream_files

POSITION_FILE = 'position.json'
_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
  """What `position.json` says.

  Attributes:
    batches: batches handed out.
    snapshot: batches made when the streams' files were saved; at most `batches`.
    fingerprint: of the data.
    num_streams: streams that have files beside it.
  """

  batches: int
  snapshot: int
  fingerprint: dict[str, str | int]
  num_streams: int

  def write(self, directory: epath.Path) -> None:
    """Writes the file."""
    record = {
      'format': _FORMAT,
      'batches': self.batches,
      'batches_since_snapshot': self.batches - self.snapshot,
      'fingerprint': self.fingerprint,
      'streams': {str(stream): list(stream_files(stream)) for stream in range(self.num_streams)},
    }
    (directory / POSITION_FILE).write_text(json.dumps(record, indent=1))

  @classmethod
  def read(cls, directory: epath.Path) -> Self:
    """Reads the file.

    Raises:
      ValueError: it is not there, or is not one.
    """
    path = directory / POSITION_FILE
    try:
      record = json.loads(path.read_text())
      if record['format'] != _FORMAT:
        raise ValueError(f'format {record["format"]}; this version reads format {_FORMAT}')
      return cls(
        batches=int(record['batches']),
        snapshot=int(record['batches']) - int(record['batches_since_snapshot']),
        fingerprint=dict(record['fingerprint']),
        num_streams=len(record['streams']),
      )
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise ValueError(f'No data position can be read from {path} ({type(error).__name__}: {error}).') from error


class Snapshots:
  """The snapshots that may still be needed, each a folder below a temporary one on this machine."""

  def __init__(self, directory: pathlib.Path, streams: Sequence[int]):
    """Begins without any.

    Args:
      directory: an empty folder.
      streams: the streams to save: those this process answers for.
    """
    self._directory = directory
    self._streams = tuple(streams)
    self._counts: list[int] = []
    self._lock = threading.Lock()

  def take(self, streams: Streams, count: int) -> None:
    """Saves the iterators, which have made `count` batches."""
    place = self._directory / str(count)
    place.mkdir()
    streams.save(place, self._streams)
    with self._lock:
      self._counts.append(count)

  def adopt(self, source: epath.Path, count: int, streams: Streams, held: Sequence[int]) -> None:
    """Restores the iterators from a saved position, which becomes the only snapshot.

    Args:
      source: where the position was saved.
      count: batches the iterators had made then.
      streams: the iterators.
      held: all streams of this process, also those that another one saves.

    Raises:
      ValueError: files are missing or damaged.
    """
    place = self._directory / str(count)
    self.clear()
    place.mkdir()
    try:
      for stream in held:
        for name in stream_files(stream):
          (source / name).copy(epath.Path(place / name))
      streams.restore(place)
    except Exception as error:  # TensorFlow raises anything from IndexError to DataLossError at a damaged file
      raise ValueError(f'The data position in {source} is damaged ({type(error).__name__}: {error}).') from error
    with self._lock:
      self._counts.append(count)

  def clear(self) -> None:
    """Removes all, also what an attempt at a damaged position has left."""
    with self._lock:
      self._counts.clear()
      for old in self._directory.iterdir():
        shutil.rmtree(old)

  def forget_before(self, count: int) -> None:
    """Removes the snapshots that no position from `count` batches on needs."""
    with self._lock:
      while len(self._counts) > 1 and self._counts[1] <= count:
        shutil.rmtree(self._directory / str(self._counts.pop(0)))

  def copy_latest(self, count: int, target: epath.Path) -> int:
    """Copies the newest snapshot that is not past `count` batches, and returns its own count."""
    with self._lock:
      latest = max(taken for taken in self._counts if taken <= count)
      for stream in self._streams:
        for name in stream_files(stream):
          epath.Path(self._directory / str(latest) / name).copy(target / name, overwrite=True)
    return latest
