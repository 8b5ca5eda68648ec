"""Stopping between two steps on SIGTERM and Ctrl-C, so that the step just done can be saved.

A single process catches the signals itself. Once `jax.distributed` is initialised its runtime catches SIGTERM (a Python
handler would silence it), and all hosts agree on the step after which they stop; Ctrl-C then goes the same way.
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Literal, Self

import jax
from jax.experimental import multihost_utils

Signal = Literal['SIGTERM', 'SIGINT']

# What a shell reports for a process that the signal ended: 128 + the signal's number.
EXIT_CODES: dict[Signal, int] = {'SIGTERM': 143, 'SIGINT': 130}

_FIRST_CTRL_C = b'\nStopping after this step and saving. Press Ctrl-C again to stop at once, without saving.\n'


class Interruption:
  """A context in which a first SIGTERM or Ctrl-C is a request to stop, and a second Ctrl-C stops at once.

  Outside the main thread, where Python allows no signal handlers, the signals keep their usual meaning.

  Args:
    distributed: whether `jax.distributed` is initialised; None asks JAX.
  """

  def __init__(self, distributed: bool | None = None):
    self._distributed = jax.distributed.is_initialized() if distributed is None else distributed
    self._received: Signal | None = None
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> Self:
    if threading.current_thread() is threading.main_thread():
      signals = [signal.SIGINT] if self._distributed else [signal.SIGINT, signal.SIGTERM]
      self._previous = {number: signal.signal(number, self._handle) for number in signals}
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
  ) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}

  def requested(self, step: int) -> Signal | None:
    """Returns which signal asked to stop, or None.

    Args:
      step: the step that was just done. With several hosts all must call this with every step in turn; all then get an
        answer after the same one.
    """
    if self._distributed:
      return (self._received or 'SIGTERM') if multihost_utils.reached_preemption_sync_point(step) else None
    return self._received

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    if number == signal.SIGINT:
      if self._received == 'SIGINT':
        raise KeyboardInterrupt
      os.write(2, _FIRST_CTRL_C)  # print() is not safe inside a signal handler
    if self._received is None or number == signal.SIGINT:
      self._received = 'SIGINT' if number == signal.SIGINT else 'SIGTERM'
    if self._distributed:
      os.kill(os.getpid(), signal.SIGTERM)  # the runtime tells the other hosts
