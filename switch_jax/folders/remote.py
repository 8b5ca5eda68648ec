"""Object stores (`gs://`): what differs there from a disk, and files that grow on them.

An object is written whole, in one request, and appears whole; there is no append and no rename but by copying. What
grows (lines of metrics, TensorBoard's events) is therefore gathered and sent at intervals, by a thread of its own. With
GCS_APPEND_MODE=compose TensorFlow sends the new bytes alone and lets the store put them behind the others, so that the
cost does not grow with the file.
"""

import contextlib
import logging
import os
import threading
import time
from typing import Any

from etils import epath

from switch_jax.config import first_line

# TensorFlow's client reads it when it first meets `gs://` in a process.
os.environ.setdefault('GCS_APPEND_MODE', 'compose')

# Seconds between two uploads of what has been gathered.
SECONDS_BETWEEN_UPLOADS = 10.0
# A store that has not taken anything for so long is spoken of, once; and given up later. TensorFlow's client tries a
# request again for about 80 s before it says that it failed.
_SECONDS_TO_WARNING, _SECONDS_TO_ERROR = 30.0, 600.0
_SECONDS_BETWEEN_TRIES = 1.0
_PASSING = {'UnavailableError', 'AbortedError', 'DeadlineExceededError', 'ResourceExhaustedError'}

_logger = logging.getLogger(__name__)


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether a path names an object store and not a disk of this machine."""
  return '://' in os.fspath(path)


def is_storage_error(error: BaseException) -> bool:
  """Whether an error is what a disk or an object store says: an OSError, or TensorFlow's own kind."""
  return isinstance(error, OSError) or bool(_kinds(error) & {'OpError'})


def _kinds(error: BaseException) -> set[str]:
  """Returns the names of TensorFlow's classes that an error is of; nothing is imported for it."""
  return {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith('tensorflow.')}


def remove_unfinished(folder: epath.Path) -> None:
  """Removes what a killed process had sent of new bytes and not put behind the others yet; nobody appends meanwhile."""
  unfinished = folder / '.tmpcompose'  # TensorFlow's name
  if unfinished.exists():
    unfinished.rmtree()


class Appender:
  """Appends to files on an object store from a thread of its own, which runs from the first bytes to `close`.

  What is given is there after `flush` or `close`, and in any case some seconds later. The first error of the store is
  raised by the next call; nothing is sent after it.
  """

  def __init__(self, seconds: float = SECONDS_BETWEEN_UPLOADS):
    self._seconds = seconds
    self._pending: dict[str, list[bytes]] = {}
    self._files: dict[str, Any] = {}
    self._open = contextlib.ExitStack()
    self._changed = threading.Condition()
    self._hurry = self._closed = self._busy = self._warned = False
    self._since: float | None = None  # when the oldest bytes that are not there yet were given
    self._error: OSError | None = None
    self._thread: threading.Thread | None = None

  def append(self, path: epath.Path, data: bytes) -> None:
    """Takes bytes for the end of a file; returns at once.

    Raises:
      OSError: an earlier upload failed.
    """
    with self._changed:
      self._raise()
      self._pending.setdefault(os.fspath(path), []).append(data)
      self._since = self._since or time.monotonic()
      self._warn()
      if self._thread is None:
        self._thread = threading.Thread(target=self._run, name='switch_jax uploads', daemon=True)
        self._thread.start()

  def flush(self) -> None:
    """Waits until everything that was given is there.

    Raises:
      OSError: the store refuses.
    """
    with self._changed:
      while self._error is None and (self._pending or self._busy):
        self._hurry = True
        self._changed.notify_all()
        self._changed.wait(1.0)
        self._warn()
      self._raise()

  def release(self) -> None:
    """As `flush`; and forgets what it knows of the files, so that they can be replaced."""
    self.flush()
    self._files.clear()
    self._open.close()  # nothing is sent by it, since all has been flushed

  def close(self) -> None:
    """As `flush`, unless an error was raised before; ends the thread."""
    try:
      if self._error is None:
        self.flush()
    finally:
      with self._changed:
        self._closed = True
        self._changed.notify_all()
      if self._thread is not None:
        self._thread.join()
        self._thread = None
      self._closed = False
      self._files.clear()
      with contextlib.suppress(Exception):  # after an error it tries once more what has just failed
        self._open.close()

  def _raise(self) -> None:
    if self._error is not None:
      raise self._error

  def _warn(self) -> None:
    waited = time.monotonic() - self._since if self._since is not None else 0.0
    if not self._warned and waited > _SECONDS_TO_WARNING + self._seconds:
      self._warned = True
      place = next(iter(self._pending), None) or next(iter(self._files), '')
      _logger.warning('%s cannot be written to at the moment; what it owes is kept here and tried again.', place)

  def _run(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._closed or self._hurry, self._seconds)
        self._hurry = False
        if (self._closed and not self._pending) or self._error is not None:
          return
        batch, self._pending = self._pending, {}
        began, self._busy = self._since, bool(batch)
      error = self._upload(batch, began)
      with self._changed:
        self._busy, self._error = False, error
        self._since = time.monotonic() if self._pending else None
        self._changed.notify_all()

  def _upload(self, batch: dict[str, list[bytes]], began: float | None) -> OSError | None:
    """Sends what was gathered; returns what the store said in the end if it refuses."""
    for path, pieces in batch.items():
      written = False
      while True:
        try:
          if path not in self._files:
            self._files[path] = self._open.enter_context(_open(path, 'ab'))
          if not written:
            self._files[path].write(b''.join(pieces))
          written = True
          self._files[path].flush()
          break
        except Exception as error:
          late = self._closed or time.monotonic() - (began or 0) > _SECONDS_TO_ERROR
          if late or not _kinds(error) & _PASSING:
            return OSError(f'{path}: {first_line(error)}')
          time.sleep(_SECONDS_BETWEEN_TRIES)
    return None


def _open(path: str, mode: str) -> Any:
  return epath.Path(path).open(mode)
