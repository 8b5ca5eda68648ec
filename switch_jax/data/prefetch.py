"""A thread that makes things ahead of their use."""

import collections
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar('T')
# How long `close` waits for an item in the making; a thread that is stuck longer is left behind (it is a daemon).
_JOIN_SECONDS = 10.0


class Prefetcher(Generic[T]):
  """Calls a function on a thread of its own, always up to `depth` results ahead of `next`."""

  def __init__(self, produce: Callable[[], T], depth: int):
    """Prepares the thread; it starts with `start` or the first `next`.

    Args:
      produce: makes the next item; an exception ends the series and is raised by `next` in its turn.
      depth: finished items that may wait.
    """
    self._produce = produce
    self._depth = depth
    self._ready: collections.deque[T] = collections.deque()
    self._error: BaseException | None = None  # what ended the series
    self._changed = threading.Condition()
    self._closed = False
    self._thread: threading.Thread | None = None

  def start(self) -> None:
    """Starts the thread if it does not run yet."""
    if self._thread is None and not self._closed:
      thread = threading.Thread(target=self._run, name='switch_jax data', daemon=True)
      thread.start()
      self._thread = thread  # only once it runs, since `close` may come from another thread and joins it

  def _run(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
        if self._closed:
          return
      try:
        item = self._produce()
      except BaseException as error:  # also what is no Exception: the one who waits for the item must not wait forever
        with self._changed:
          self._error = error
          self._changed.notify_all()
        return
      with self._changed:
        self._ready.append(item)
        self._changed.notify_all()

  def next(self) -> T:
    """Returns the next item, waiting for it if need be.

    Raises:
      Exception: whatever `produce` raised, again at every further call.
      RuntimeError: closed.
    """
    self.start()
    with self._changed:
      self._changed.wait_for(lambda: self._closed or self._ready or self._error is not None)
      if self._closed:
        raise RuntimeError('This data source is closed.')
      if self._error is not None and not self._ready:
        raise self._error
      item = self._ready.popleft()
      self._changed.notify_all()
      return item

  def close(self) -> None:
    """Stops the thread and drops what is ready. Closing twice is fine."""
    with self._changed:
      self._closed = True
      self._ready.clear()
      self._changed.notify_all()
    if self._thread is not None and self._thread is not threading.current_thread():
      self._thread.join(_JOIN_SECONDS)
