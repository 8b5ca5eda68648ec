"""Runs the points of a sweep as commands of their own, some at once, and goes on where it stopped."""

import concurrent.futures
import fcntl
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from switch_jax.folders.model_dir import ModelDir
from switch_jax.sweep.results import ELSEWHERE, FAILED, FINISHED_STATUS, NOT_RUN, STOPPED, read_finished

LOG = 'run.log'
_COMMAND = ('-m', 'switch_jax.main')
# What `switch_jax.main` returns after Ctrl-C and SIGTERM, and what the system says if that came before it could.
_STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


class _Progress:
  """Says what has ended, and how long the rest may take."""

  def __init__(self, total: int, jobs: int, note: Callable[[str], None]):
    self._total, self._jobs, self._note = total, jobs, note
    self._ended, self._seconds = 0, []
    self._lock = threading.Lock()

  def began(self, name: str) -> None:
    with self._lock:
      self._note(f'{name}: began')

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


def is_finished(folder: epath.Path, arguments: Sequence[str]) -> bool:
  """Whether a point has been run to its end by this command; a longer one goes on from its checkpoint."""
  record = read_finished(folder)
  return record is not None and record.get('arguments') == list(arguments)


def run_points(
  commands: Mapping[str, Sequence[str]],
  needs: Mapping[str, Sequence[str]],
  out: epath.Path,
  logs: epath.Path,
  jobs: int,
  note: Callable[[str], None],
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

  Returns:
    The status of each point: `finished`, `failed`, `stopped`, `running elsewhere` or `not run`.
  """
  children: set[subprocess.Popen[bytes]] = set()
  todo = [name for name, arguments in commands.items() if not is_finished(out / name, arguments)]
  if len(todo) < len(commands):
    note(f'{len(commands) - len(todo)} of {len(commands)} have finished before')
  progress = _Progress(len(todo), jobs, note)
  stopping = threading.Event()

  def run(name: str) -> str:
    arguments, folder, place = list(commands[name]), out / name, logs / name / LOG
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open('ab') as log:
      try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        progress.ended(name, ELSEWHERE)
        return ELSEWHERE
      if is_finished(folder, arguments):  # by another sweep, since this one began
        progress.ended(name, 'finished elsewhere')
        return FINISHED_STATUS
      if stopping.is_set():
        return STOPPED
      progress.began(name)
      start = time.monotonic()
      child = subprocess.Popen([sys.executable, *_COMMAND, *arguments], stdout=log, stderr=subprocess.STDOUT)
      children.add(child)
      status = child.wait()
      children.discard(child)
      seconds = time.monotonic() - start
      if status in _STOPPED:
        progress.ended(name, 'was stopped; the same command goes on from its checkpoint')
        return STOPPED
      if status:
        progress.ended(name, f'FAILED with status {status}: {last_error(place)} ({place})', seconds)
        return FAILED
      before = (read_finished(folder) or {}).get('seconds', 0)
      record = {'arguments': arguments, 'seconds': seconds + before}
      ModelDir(folder).finished.write_text(json.dumps(record, indent=1) + '\n')
      progress.ended(name, f'finished in {seconds:.0f} s', seconds)
      return FINISHED_STATUS

  statuses = dict.fromkeys(commands, FINISHED_STATUS)
  waiting = {name: set(needs.get(name, ())).intersection(todo) for name in todo}
  pool = concurrent.futures.ThreadPoolExecutor(jobs)
  running: dict[concurrent.futures.Future[str], str] = {}

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
      for name in [name for name, missing in waiting.items() if not missing]:
        del waiting[name]
        running[pool.submit(run, name)] = name
      done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
      for future in done:
        settle(running.pop(future), future.result())
  except BaseException:  # Ctrl-C and SIGTERM among them
    stopping.set()
    for child in list(children):  # each writes a checkpoint before it ends
      child.terminate()
    raise
  finally:
    pool.shutdown(cancel_futures=True)
  return statuses
