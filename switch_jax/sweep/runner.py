"""Runs the points of a sweep as commands of their own, some at once, and goes on where it stopped."""

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from etils import epath

import switch_jax
from switch_jax.folders.model_dir import ModelDir
from switch_jax.sweep.results import ELSEWHERE, FAILED, FINISHED_STATUS, NOT_RUN, STOPPED, read_finished

LOG = 'run.log'
_COMMAND = ('-m', 'switch_jax.main')
# Takes the name of a file with the arguments of several, and writes a list of their errors beside it.
TOGETHER = '--train_together'
_TOGETHER_COMMAND = ('-m', 'switch_jax.sweep', TOGETHER)
# What `switch_jax.main` returns after Ctrl-C and SIGTERM, and what the system says if that came before it could.
_STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


class _Progress:
  """Says what has ended, and how long the rest may take."""

  def __init__(self, total: int, jobs: int, note: Callable[[str], None]):
    self._total, self._jobs, self._note = total, jobs, note
    self._ended, self._seconds = 0, []
    self._lock = threading.Lock()

  def began(self, names: Sequence[str]) -> None:
    with self._lock:
      others = f' and {len(names) - 1} more, together' if len(names) > 1 else ''
      self._note(f'{names[0]}{others}: began')

  def ended(self, name: str, outcome: str, seconds: float | None = None) -> None:
    with self._lock:
      self._ended += 1
      left = self._total - self._ended
      if seconds is not None:
        self._seconds.append(seconds)
      text = f'[{self._ended}/{self._total}] {name}: {outcome}'
      if self._seconds and left:
        minutes = sum(self._seconds) / len(self._seconds) * left / self._jobs / 60
        text += f'; about {minutes:.0f} min left' if minutes >= 1 else '; less than a minute left'
      self._note(text)


def last_error(log: epath.Path) -> str:
  """Returns the line of a log that says what went wrong: the last `error: ...`, or else its last line."""
  lines = [line for line in log.read_bytes().decode('utf-8', 'replace').splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith('error: ')]
  return (errors or lines or ['it wrote nothing'])[-1].removeprefix('error: ').strip()


@functools.cache
def code_digest() -> str:
  """Returns the sha256 of this package's sources, as they are now: which version of the code a run is of."""
  digest, package = hashlib.sha256(), pathlib.Path(switch_jax.__file__).parent
  for path in sorted(package.rglob('*.py')):
    digest.update(path.relative_to(package).as_posix().encode() + b'\0' + path.read_bytes() + b'\0')
  return digest.hexdigest()


def is_finished(folder: epath.Path, arguments: Sequence[str]) -> bool:
  """Whether a point has been run to its end by this command; a longer one goes on from its checkpoint."""
  record = read_finished(folder)
  return record is not None and record.get('arguments') == list(arguments)


def make_groups(names: Sequence[str], kinds: Mapping[str, str], size: int) -> list[list[str]]:
  """Returns points in groups that are run by one process: of one kind, of at most this size, in their order.

  Args:
    names: of the points.
    kinds: for each what all of its group share; those without one are run alone.
    size: the most points of a group.
  """
  groups: list[list[str]] = []
  open_groups: dict[str, list[str]] = {}
  for name in names:
    group = open_groups.get(kinds.get(name, ''), [])
    if name not in kinds or not 0 < len(group) < size:
      group = []
      groups.append(group)
      if name in kinds:
        open_groups[kinds[name]] = group
    group.append(name)
  return groups


def errors_file(arguments_file: pathlib.Path) -> pathlib.Path:
  """Returns where a process writes how each of several runs ended: a list of its errors, null where there is none."""
  return arguments_file.with_name('errors.json')


def _start(
  arguments: Sequence[list[str]], logs: Sequence[IO[bytes]], children: set[subprocess.Popen[bytes]]
) -> tuple[int, Sequence[str | None]]:
  """Runs one point, or several together, in one process; returns its exit status and the error of each.

  Its output goes to the log of the first, and the locks of all logs to the process.
  """
  with tempfile.TemporaryDirectory(prefix='switch_jax_sweep_') as folder:
    if len(arguments) == 1:
      command = [*_COMMAND, *arguments[0]]
    else:
      file = pathlib.Path(folder) / 'arguments.json'
      file.write_text(json.dumps(arguments))
      command = [*_TOGETHER_COMMAND, str(file)]
      for log in logs[1:]:
        log.write(f'trained together with others; what they say is in {logs[0].name}\n'.encode())
        log.flush()
    locks = [log.fileno() for log in logs[1:]]
    child = subprocess.Popen([sys.executable, *command], stdout=logs[0], stderr=subprocess.STDOUT, pass_fds=locks)
    children.add(child)
    status = child.wait()
    children.discard(child)
    errors = [None] * len(arguments)
    if len(arguments) > 1 and status == 0:
      errors = json.loads(errors_file(file).read_text())
  return status, errors


def run_points(
  commands: Mapping[str, Sequence[str]],
  needs: Mapping[str, Sequence[str]],
  out: epath.Path,
  logs: epath.Path,
  jobs: int,
  note: Callable[[str], None],
  kinds: Mapping[str, str] | None = None,
  together: int = 1,
) -> dict[str, str]:
  """Runs every point that has not finished, after those that it needs.

  Two sweeps over the same folder share its points: the log of a running point is locked, by the run itself, so that
  it stays locked if the sweep is killed and the run is not.

  Args:
    commands: for each point the arguments of `switch_jax.main`.
    needs: for each point those whose results it takes; without them it is not run.
    out: the folder of the points' MODEL_DIRs; may be remote.
    logs: the local folder of the folders of their logs; may be the same.
    jobs: how many run at once.
    note: takes lines of progress.
    kinds: for points that can be trained together, what those that can be have in common.
    together: how many are, in one process.

  Returns:
    The status of each point: `finished`, `failed`, `stopped`, `running elsewhere` or `not run`.
  """
  children: set[subprocess.Popen[bytes]] = set()
  todo = [name for name, arguments in commands.items() if not is_finished(out / name, arguments)]
  if len(todo) < len(commands):
    note(f'{len(commands) - len(todo)} of {len(commands)} have finished before')
  progress = _Progress(len(todo), jobs, note)
  stopping = threading.Event()

  def run(names: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
      held: dict[str, IO[bytes]] = {}
      for name in names:
        place = logs / name / LOG
        place.parent.mkdir(parents=True, exist_ok=True)
        log = stack.enter_context(place.open('ab'))
        try:
          fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
          progress.ended(name, ELSEWHERE)
          found[name] = ELSEWHERE
          continue
        if is_finished(out / name, commands[name]):  # by another sweep, since this one began
          progress.ended(name, 'finished elsewhere')
          found[name] = FINISHED_STATUS
        else:
          held[name] = log
      if not held:
        return found
      if stopping.is_set():
        return found | dict.fromkeys(held, STOPPED)
      progress.began(list(held))
      start = time.monotonic()
      status, errors = _start([list(commands[name]) for name in held], list(held.values()), children)
      seconds = (time.monotonic() - start) / len(held)
      if status == 0 or status in _STOPPED or len(held) == 1:
        for (name, log), error in zip(held.items(), errors, strict=True):
          found[name] = settle_run(name, log, status, error, seconds)
        return found
    # What is wrong with one of them must not stop the others.
    note(f'{len(held)} points failed together: {last_error(logs / next(iter(held)) / LOG)}; each is run alone')
    for name in held:
      found |= run([name])
    return found

  def settle_run(name: str, log: IO[bytes], status: int, error: str | None, seconds: float) -> str:
    """Records how a run ended; returns the status of its point."""
    if status in _STOPPED:
      progress.ended(name, 'was stopped; the same command goes on from its checkpoint')
      return STOPPED
    place = logs / name / LOG
    if error:
      log.write(f'error: {error}\n'.encode())
      log.flush()
    if status or error:
      progress.ended(name, f'FAILED with status {status or 1}: {last_error(place)} ({place})', seconds)
      return FAILED
    before = (read_finished(out / name) or {}).get('seconds', 0)
    record = {'arguments': list(commands[name]), 'seconds': seconds + before, 'code': code_digest()}
    ModelDir(out / name).finished.write_text(json.dumps(record, indent=1) + '\n')
    progress.ended(name, f'finished in {seconds:.0f} s', seconds)
    return FINISHED_STATUS

  statuses = dict.fromkeys(commands, FINISHED_STATUS)
  waiting = {name: set(needs.get(name, ())).intersection(todo) for name in todo}
  pool = concurrent.futures.ThreadPoolExecutor(jobs)
  groups = make_groups(todo, kinds or {}, together)
  running: set[concurrent.futures.Future[dict[str, str]]] = set()

  def settle(name: str, status: str) -> None:
    """Notes how a point ended, and lets those that wait for it go on, or gives them up."""
    statuses[name] = status
    for other, missing in list(waiting.items()):
      if name not in missing:
        continue
      missing.discard(name)
      if status != FINISHED_STATUS and waiting.pop(other, None) is not None:
        progress.ended(other, f'not run, because it needs {name}')
        settle(other, NOT_RUN)

  try:
    while waiting or running:
      for group in groups:
        left = [name for name in group if name in waiting]  # the others run, or were given up
        if left and not any(waiting[name] for name in left):
          for name in left:
            del waiting[name]
          running.add(pool.submit(run, left))
      done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
      for future in done:
        for name, status in future.result().items():
          settle(name, status)
  except BaseException:  # Ctrl-C and SIGTERM among them
    stopping.set()
    for child in list(children):  # each writes a checkpoint before it ends
      child.terminate()
    raise
  finally:
    pool.shutdown(cancel_futures=True)
  return statuses
