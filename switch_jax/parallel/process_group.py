"""The processes of a run find each other, and learn at once when one of them fails or dies.

JAX's coordination service knows that too, but it says so by aborting the process from C++, after minutes of silence or
at once, with a stack dump. Here every process keeps a TCP connection to process 0. They meet on the coordinator's port
before JAX listens there, so no other port need be open between hosts; who is missing is then known by number. Later an
error is told in words, and a connection that closes without a word is a process that was killed.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from typing import Any

from switch_jax.config import ConfigError
from switch_jax.parallel.hosts import PATIENCE, name_processes

# Seconds a process that hears of another's failure leaves its own main thread to fail of the same cause in its own
# words; as long for an error of the main thread to turn out to be the echo of another's death.
_GRACE = 3.0
# Seconds process 0, in which JAX's coordination service lives, stays for the others to say their line and go.
_FAREWELL = 15.0
# A host without power or network, or a process that stands still, sends no end of its connections: every process sends
# a sign of life, and who is silent for long is given up.
_SIGN_OF_LIFE, _SILENCE = 5.0, 45.0
_LONGEST_MESSAGE = 1 << 20
# The exit status where another host is lost (sysexits.h: EX_TEMPFAIL): nothing is wrong with the run, start it again.
HOST_LOST = 75

_REMEDY = 'Is the same command, with its own --process_id, running on every host?'


class _Connection:
  """JSON objects, one a line, over a socket."""

  def __init__(self, connected: socket.socket):
    self._socket, self._buffer = connected, b''
    self._sending = threading.Lock()
    connected.settimeout(_FAREWELL)

  def fileno(self) -> int:
    return self._socket.fileno()

  def send(self, **message: Any) -> None:
    """Sends a message; that nobody is there any more is noticed by `receive`."""
    with self._sending, contextlib.suppress(OSError):
      self._socket.sendall(json.dumps(message).encode() + b'\n')

  def receive(self) -> list[dict[str, Any]] | None:
    """Returns the messages that have come, or None at the end or if it is something else that speaks there."""
    try:
      received = self._socket.recv(1 << 16)
      *lines, self._buffer = (self._buffer + received).split(b'\n')
      messages = [json.loads(line) for line in lines]
    except (OSError, ValueError):
      return None
    ours = all(isinstance(message, dict) for message in messages) and len(self._buffer) < _LONGEST_MESSAGE
    return messages if received and ours else None

  def end_sending(self) -> None:
    """Says that no more will be sent. Only after the other side has ended too may the connection be closed.

    Closing it earlier, with a sign of life still unread, resets it, and the other side loses what it has not read yet.
    """
    with contextlib.suppress(OSError):
      self._socket.shutdown(socket.SHUT_WR)

  def close(self) -> None:
    self._socket.close()


class _Patience:
  """How long the others are waited for, and what is said of it."""

  def __init__(self, seconds: float):
    self._began = time.monotonic()
    self._seconds, self._next = seconds, PATIENCE

  def is_over(self, waiting_for: str) -> bool:
    """Whether the time is up; says after a while, and then every minute, who is waited for."""
    waited = time.monotonic() - self._began
    if waited >= self._next and waited < self._seconds:
      print(f'waiting for {waiting_for}, {waited:.0f} of {self._seconds:g} s', file=sys.stderr, flush=True)
      self._next = waited + 60
    return waited >= self._seconds


def join(address: str, count: int, process: int, seconds: float) -> 'ProcessGroup':
  """Waits until all processes of a run are there; the coordinator's port is free again afterwards.

  Args:
    address: HOST:PORT of process 0.
    count: how many processes there are.
    process: which one this is.
    seconds: how long the others are waited for. After 10 s it is said who is.

  Raises:
    ConfigError: one of them did not come, or is not of this run; it is named where it is known.
  """
  patience = _Patience(seconds)
  if process:
    connection, messages = _enter(address, count, process, patience)
    return ProcessGroup(process, {0: connection}, {0: address}, messages)
  return _gather(address, count, patience)


def _gather(address: str, count: int, patience: _Patience) -> 'ProcessGroup':
  """Process 0: takes in all others."""
  port = int(address.rpartition(':')[2])
  ipv6 = socket.has_dualstack_ipv6()
  try:
    listener = socket.create_server(
      ('', port), family=socket.AF_INET6 if ipv6 else socket.AF_INET, dualstack_ipv6=ipv6, backlog=1024
    )
  except OSError as error:
    raise ConfigError(
      f'process 0 cannot listen at {address} ({error.strerror}); end what uses the port, or choose another one.'
    ) from None
  here: dict[int, _Connection] = {}
  names = {0: socket.gethostname()}
  with listener, selectors.DefaultSelector() as selector, contextlib.ExitStack() as unless_complete:
    selector.register(listener, selectors.EVENT_READ)
    while len(here) < count - 1:
      missing = [number for number in range(1, count) if number not in here]
      if patience.is_over(name_processes(missing, count)):
        text = f'{name_processes(missing, count)} did not join {address} in time. {_REMEDY}'
        for connection in here.values():
          connection.send(refused=text)
        raise ConfigError(text)
      for key, _ in selector.select(1):
        if key.fileobj is listener:
          connection = _Connection(listener.accept()[0])
          unless_complete.callback(connection.close)
          selector.register(connection, selectors.EVENT_READ)
        elif isinstance(key.fileobj, _Connection) and not _take_in(key.fileobj, count, here, names):
          selector.unregister(key.fileobj)
          key.fileobj.close()
    for key in selector.get_map().values():
      if isinstance(key.fileobj, _Connection) and key.fileobj not in here.values():
        key.fileobj.close()  # it has not said who it is
    unless_complete.pop_all()
  for connection in here.values():
    connection.send(complete=True)
  return ProcessGroup(0, here, names)


def _take_in(connection: _Connection, count: int, here: dict[int, _Connection], names: dict[int, str]) -> bool:
  """Reads what a process says of itself; returns whether its connection is kept."""
  messages = connection.receive()
  if messages is None:
    for left in [left for left, known in here.items() if known is connection]:
      del here[left]  # it may come again
    return False
  for message in messages:
    number, host = message.get('process'), str(message.get('host'))
    refused = ''
    if message.get('count') != count:
      refused = f'--num_processes is {message.get("count")} in process {number} on {host} and {count} in process 0.'
    elif not isinstance(number, int) or number not in range(1, count) or number in here:
      refused = f'--process_id={number} on {host} is there already, from {names.get(number or 0)}.'
    if refused or not isinstance(number, int):
      print(f'refused: {refused}', file=sys.stderr, flush=True)
      connection.send(refused=refused)
      return False
    here[number], names[number] = connection, host
  return True


def _enter(address: str, count: int, process: int, patience: _Patience) -> tuple[_Connection, list[dict[str, Any]]]:
  """A process other than 0: goes to process 0 and waits there for the rest.

  Returns:
    The connection, and what process 0 has said in the same breath after all were there: that it leaves, perhaps.
  """
  host, _, port = address.rpartition(':')
  reason = ''
  while True:
    try:
      connection = _Connection(socket.create_connection((host.strip('[]'), int(port)), timeout=5))
    except OSError as error:
      reason = error.strerror or str(error)
    else:
      connection.send(process=process, count=count, host=socket.gethostname())
      reason = 'it does not answer as a process of this run'
      with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while not patience.is_over(f'the other processes; process 0 at {address} is there'):
          if not selector.select(1):
            continue
          messages = connection.receive()
          if messages is None:
            break
          for number, message in enumerate(messages, 1):
            if 'refused' in message:
              connection.close()
              raise ConfigError(str(message['refused']))
            if 'complete' in message:
              return connection, messages[number:]
      connection.close()
    if patience.is_over(f'process 0 of {count} at {address} ({reason})'):
      raise ConfigError(f'process {process} of {count} could not join process 0 at {address}: {reason}. {_REMEDY}')
    time.sleep(0.2)


class ProcessGroup:
  """The processes of a run. A thread listens to the others until they have all left.

  Args:
    process: which one this is.
    connections: process 0 has one to every other process, the others have one to process 0.
    names: of the hosts at their ends, by process.
    messages: of process 0, that have come already.
  """

  def __init__(
    self,
    process: int,
    connections: dict[int, _Connection],
    names: dict[int, str],
    messages: list[dict[str, Any]] | None = None,
  ):
    self._process, self._connections, self._names = process, connections, names
    self._early, self._said_farewell = messages or [], set[int]()
    self._heard, self._failing, self._left = threading.Event(), threading.Event(), threading.Event()
    self._thread = threading.Thread(target=self._listen, name='process_group', daemon=True)

  def start(self) -> None:
    """Begins to listen: from now on the failure of another process ends this one."""
    self._thread.start()

  @property
  def is_failing(self) -> bool:
    """Whether this process has told the others of an error of its own."""
    return self._failing.is_set()

  def fail(self, message: str, *, may_be_an_echo: bool) -> None:
    """Tells the others that this process ends with an error.

    Args:
      message: of the error, one line.
      may_be_an_echo: whether the cause may be another process that died in the middle of a collective operation. If
        that is heard within seconds, this process ends with the true cause, and the call does not return.
    """
    if may_be_an_echo and self._heard.wait(_GRACE):
      self._thread.join()
    self._failing.set()
    self._tell(failed=f'process {self._process} has failed: {message}', status=1)

  def leave(self) -> None:
    """Leaves in good order: waits until all have come to their end, so that the failure of one is still heard."""
    self._tell(left=True)  # before the thread knows, which ends sending to whoever has left too
    self._left.set()
    self._thread.join()
    for connection in self._connections.values():
      connection.close()

  def leave_after_failure(self, status: int) -> None:
    """Ends the process, without the five minutes for which JAX waits for the others on the ordinary way out."""
    if self._process == 0:
      self._thread.join(_FAREWELL)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

  def _tell(self, **message: Any) -> None:
    for connection in list(self._connections.values()):
      connection.send(**message)

  def _listen(self) -> None:
    """Reads until the others have left; ends the process if one of them fails."""
    with selectors.DefaultSelector() as selector:
      for number, connection in self._connections.items():
        selector.register(connection, selectors.EVENT_READ, number)
      self._take(0, self._early)
      told, parting = time.monotonic(), 0.0
      heard = dict.fromkeys(self._connections, told)
      while self._connections:
        for key, _ in selector.select(0.2):
          number, connection = key.data, self._connections[key.data]
          heard[number] = time.monotonic()
          messages = connection.receive()
          self._take(number, messages or [])
          if messages is None and number not in self._said_farewell and not self._failing.is_set():
            name = self._names[number]
            self._end(f'process {number} ({name}) has died or cannot be reached any more', number, HOST_LOST)
          if messages is None:
            selector.unregister(connection)
            self._connections.pop(number).close()
        if self._left.is_set():
          for number in self._said_farewell.intersection(self._connections):
            self._connections[number].end_sending()
          if self._said_farewell.issuperset(self._connections):
            parting = parting or time.monotonic()
            if time.monotonic() - parting > _FAREWELL:
              return
        told = self._tell_of_life(told, heard)

  def _take(self, number: int, messages: list[dict[str, Any]]) -> None:
    """Takes what a process has said: that it leaves, or has failed, which ends this one."""
    for message in messages:
      if 'left' in message:
        self._said_farewell.add(number)
      elif 'failed' in message:
        self._said_farewell.add(number)
        self._end(str(message['failed']), number, int(message['status']), _GRACE)

  def _tell_of_life(self, told: float, heard: dict[int, float]) -> float:
    """Tells the others that this process lives, and ends it if one of them has been silent for long.

    Args:
      told: when they were told last.
      heard: when each was heard last; set anew where this process itself stood still, and heard nobody.

    Returns:
      When they were told last.
    """
    now = time.monotonic()
    if now - told < _SIGN_OF_LIFE:
      return told
    if now - told > 3 * _SIGN_OF_LIFE:
      heard.update(dict.fromkeys(heard, now))
    self._tell(alive=True)
    for number in self._connections:
      if now - heard[number] > _SILENCE and not self._failing.is_set():
        line = f'process {number} ({self._names[number]}) has given no sign of life for {_SILENCE:g} s'
        self._end(line, number, HOST_LOST)
    return now

  def _end(self, line: str, cause: int, status: int, grace: float = 0) -> None:
    """Says a line and ends the process, unless it is ending with an error of its own."""
    if self._process != 0 and not grace:
      # Process 0 is gone and with it JAX's coordination service: the first thing to do, or C++ aborts before it.
      os.write(2, f'error: {line}\n'.encode())
      os._exit(status)
    self._heard.set()
    for number, connection in self._connections.items():
      if number != cause:
        connection.send(failed=line, status=status)
    if self._failing.wait(grace):
      return
    os.write(2, f'error: {line}\n'.encode())
    if self._process == 0:
      self._outlast_the_others(cause)
    os._exit(status)

  def _outlast_the_others(self, cause: int) -> None:
    """Keeps JAX's coordination service alive until the others have said their line: without it they abort."""
    deadline = time.monotonic() + _FAREWELL
    with selectors.DefaultSelector() as selector:
      for number, connection in self._connections.items():
        if number != cause:
          selector.register(connection, selectors.EVENT_READ)
      while selector.get_map() and time.monotonic() < deadline:
        for key, _ in selector.select(1):
          if isinstance(key.fileobj, _Connection) and key.fileobj.receive() is None:
            selector.unregister(key.fileobj)
