"""One owner at a time of a folder or an output file: a claim that its owner renews while it lives.

A claim is one small file. All that happens to it is a conditional write of TensorStore: "if this is still the
generation that I saw". On a disk that is a file lock and a rename, on an object store a precondition of the request, so
of several who create, take over or renew at once exactly one succeeds.

Who is dead? A process of this machine is looked up in /proc: it is refused or replaced at once. Of any other nothing is
believed, least of all its clock: the file is watched, and if it stays the same for the whole watch its owner is dead. A
damaged file is a claim of somebody unknown. An owner that was stopped for so long finds another's claim in its place
when it renews its own, and is told.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
import urllib.parse
from types import TracebackType
from typing import Any, Self

import tensorstore

from switch_jax.config import ConfigError, first_line

REFRESH_SECONDS = 10.0
# Four signs of life that did not come.
WATCH_SECONDS = 45.0
# Longest time that a request may take when a claim is taken; TensorStore itself tries again for many minutes.
_ANSWER_SECONDS = 60.0
# What TensorStore raises, and what a time limit of ours does.
_STORE_ERRORS = (ValueError, OSError, TimeoutError)

# Tokens of the claims that this process holds, or is about to: one that it has let go of is nobody's.
_HELD: set[str] = set()


def boot_seconds() -> float:
  """Returns the seconds since this machine was started, time asleep included: one clock for all its processes."""
  return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, 'CLOCK_BOOTTIME') else time.monotonic()


@functools.cache
def this_machine() -> str:
  """Returns a name of this start of this machine and of its process numbers; empty where it cannot be told."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    # Containers of one machine may have one host name and each its own process 1.
    return f'{socket.gethostname()} {boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return ''


def start_of(process: int) -> int | None:
  """Returns when a process of this machine began, in ticks since boot; None if it has ended or cannot be seen."""
  try:
    text = pathlib.Path(f'/proc/{process}/stat').read_text()
  except OSError:
    return None
  state, *fields = text.rpartition(')')[2].split()
  return None if state in 'ZX' else int(fields[18])  # a zombie has ended, and waits for its parent to hear of it


@dataclasses.dataclass(frozen=True)
class Holder:
  """What a claim says of its owner.

  Attributes:
    host: its name.
    machine: as `this_machine`.
    process: its process id.
    started: as `start_of`; 0 if it could not be told.
    token: a random name of the claim.
    renewed: `boot_seconds` of the last sign of life.
    time: the same by the host's clock, for people.
  """

  host: str
  machine: str
  process: int
  started: int
  token: str
  renewed: float
  time: str

  @classmethod
  def here(cls, token: str) -> Self:
    """Returns this process, now."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    process = os.getpid()
    return cls(socket.gethostname(), this_machine(), process, start_of(process) or 0, token, boot_seconds(), now)

  @classmethod
  def parse(cls, data: bytes) -> Self | None:
    """Returns what a file says, or None if it is damaged."""
    try:
      record = json.loads(data)
      values = {f.name: f.type(record[f.name]) for f in dataclasses.fields(cls)}  # type: ignore[operator]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
      return None
    return cls(**values)

  def is_alive(self) -> bool | None:
    """Returns whether the process lives; None if that cannot be seen from here."""
    if not self.machine or self.machine != this_machine():
      return None
    if self.process == os.getpid() and self.started == start_of(self.process):
      return self.token in _HELD
    try:
      os.kill(self.process, 0)
    except PermissionError:
      pass  # somebody else's; /proc may hide it
    except (OSError, OverflowError):
      return False
    else:
      return start_of(self.process) == self.started
    return (start_of(self.process) == self.started) or None

  def __str__(self) -> str:
    return f'process {self.process} on host {self.host}'


class Claim:
  """A claim, to be taken and released, or used in a `with`.

  Args:
    place: of the file, local or `gs://`, or a store of TensorStore whose empty key it is.
    what: it is a claim on, as `MODEL_DIR /some/dir`, for messages.
    remedy: what somebody who is refused can do beside waiting, as `set another --gin.MODEL_DIR`.
    refresh_seconds: between two signs of life.
    watch_seconds: without a sign of life after which the owner is dead; several times `refresh_seconds`.
  """

  def __init__(
    self,
    place: str | os.PathLike[str] | tensorstore.KvStore,
    what: str,
    remedy: str,
    *,
    refresh_seconds: float = REFRESH_SECONDS,
    watch_seconds: float = WATCH_SECONDS,
  ):
    self._place, self._what, self._remedy = place, what, remedy
    self._refresh_seconds, self._watch_seconds = refresh_seconds, watch_seconds
    self._token = self._lost = self._trouble = ''
    self._generation = b''
    self._attempted = 0.0
    self._lock, self._released = threading.Lock(), threading.Event()
    self._thread: threading.Thread | None = None

  def take(self) -> None:
    """Takes the claim, watching first whether an owner that cannot be seen from here is alive.

    Raises:
      ConfigError: a living process has it, or the file cannot be written.
    """
    self._token = secrets.token_hex(16)
    _HELD.add(self._token)
    try:
      self._store = _open(self._place)
      self._generation = self._win()
    except BaseException as error:
      _HELD.discard(self._token)
      if isinstance(error, _STORE_ERRORS) and not isinstance(error, ConfigError):
        raise ConfigError(f'{self._what} cannot be written to ({_cause(error)}); {self._remedy}.') from error
      raise
    self._lost, self._attempted = '', boot_seconds()
    self._released.clear()
    self._thread = threading.Thread(target=self._keep, name='switch_jax claim', daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Makes sure that the claim is still this process's; free of charge. Where none was taken all is well.

    Raises:
      ConfigError: another process has taken it over, or it was removed.
    """
    if self._thread is None:
      return
    # After a stop of the whole process (SIGSTOP, a machine asleep) this thread may be the first to run again.
    if not self._lost and boot_seconds() - self._attempted > 3 * self._refresh_seconds:
      self._renew()
    if self._lost:
      raise ConfigError(self._lost)

  def release(self) -> None:
    """Lets go of the claim and ends its thread. Without a claim nothing happens."""
    if self._thread is None:
      return
    self._released.set()
    self._thread.join()
    self._thread = None
    if not self._lost:
      with contextlib.suppress(*_STORE_ERRORS):  # it is taken over then
        self._store.write('', None, if_equal=self._generation).result(timeout=self._refresh_seconds)
    _HELD.discard(self._token)

  def __enter__(self) -> Self:
    self.take()
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
  ) -> None:
    self.release()

  def _read(self, seconds: float) -> Any:
    return self._store.read('').result(timeout=seconds)

  def _write(self, generation: bytes, seconds: float) -> bytes:
    """Writes a sign of life over a generation; returns the new one, or nothing if it is no longer there."""
    text = json.dumps(dataclasses.asdict(Holder.here(self._token)), indent=1) + '\n'
    return self._store.write('', text.encode(), if_equal=generation).result(timeout=seconds).generation

  def _win(self) -> bytes:
    """Returns the generation of this process's claim once it has it."""
    watched: bytes | None = None
    began = 0.0
    while True:
      seen = self._read(_ANSWER_SECONDS)
      generation, holder = seen.stamp.generation, Holder.parse(seen.value)
      if holder is not None and holder.token == self._token:
        return generation  # written, though the answer was lost on the way
      alive = holder.is_alive() if holder is not None else None
      if holder is not None and alive:
        raise self._refused(holder, f'{max(boot_seconds() - holder.renewed, 0):.0f} s ago')
      if seen.state == 'missing' or alive is False:
        is_free = True
      elif watched is None:
        watched, began, is_free = generation, boot_seconds(), False
        self._say(
          f'{self._what} is claimed by {holder or "an unknown process"}, which cannot be seen from here; watching for '
          f'{self._watch_seconds:.0f} s whether it is alive'
        )
      elif generation != watched:
        raise self._refused(holder, 'a moment ago')
      else:
        is_free = boot_seconds() - began >= self._watch_seconds
      if not is_free:
        time.sleep(min(1.0, self._watch_seconds / 20))
        continue
      if written := self._write(generation, _ANSWER_SECONDS):
        return written
      watched = None  # another was faster; who is it?

  def _refused(self, holder: Holder | None, age: str) -> ConfigError:
    return ConfigError(
      f'{self._what} belongs to {holder or "an unknown process"}, which is alive: its last sign of life was {age}. '
      f'Wait for it or stop it, or {self._remedy}.'
    )

  def _keep(self) -> None:
    while not self._lost and not self._released.wait(self._refresh_seconds):
      self._renew()

  def _renew(self) -> None:
    """Gives a sign of life, or finds out that the claim is lost. An error is said once; the next try comes anyway."""
    with self._lock:
      if self._lost or self._released.is_set():
        return
      self._attempted = boot_seconds()
      try:
        self._generation = self._write(self._generation, self._refresh_seconds) or self._found_again()
        self._trouble = ''
      except _STORE_ERRORS as error:
        if not self._trouble:
          self._trouble = _cause(error)
          self._say(f'the claim on {self._what} could not be renewed ({self._trouble}); trying again')
      self._attempted = boot_seconds()

  def _found_again(self) -> bytes:
    """Returns the generation of a claim that is no longer the one last seen but still this process's."""
    seen = self._read(self._refresh_seconds)
    holder = Holder.parse(seen.value)
    if holder is not None and holder.token == self._token:
      return seen.stamp.generation  # a write whose answer was lost
    now = 'its claim was removed' if seen.state == 'missing' else f'{holder or "an unknown process"} has taken it over'
    self._lost = (
      f'{self._what} no longer belongs to this process: {now}. That happens if none of its signs of life arrives for '
      f'{self._watch_seconds:.0f} s (the process was stopped, or the disk out of reach). Nothing more is written there.'
    )
    return b''

  def _say(self, text: str) -> None:
    print(f'note: {text}', file=sys.stderr, flush=True)


def _open(place: str | os.PathLike[str] | tensorstore.KvStore) -> tensorstore.KvStore:
  if isinstance(place, tensorstore.KvStore):
    return place
  text = os.fspath(place)
  is_remote = '://' in text
  spec = urllib.parse.quote(text, safe='/:') if is_remote else {'driver': 'file', 'path': os.path.abspath(text)}
  return tensorstore.KvStore.open(spec).result(timeout=_ANSWER_SECONDS)


def _cause(error: BaseException) -> str:
  return 'no answer' if isinstance(error, TimeoutError) else first_line(Exception(str(error)))
