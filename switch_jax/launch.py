"""The process a run lives in: memory allocator, platform, logging, compilation cache, several hosts.

Nothing here imports JAX before it is called; `main` calls it once the configuration has been checked.
"""

import argparse
import contextlib
import ctypes
import glob
import importlib.util
import logging
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from switch_jax.config import ConfigError
from switch_jax.folders.cache import cache_directory

if TYPE_CHECKING:
  from switch_jax.parallel.process_group import ProcessGroup

_TUNABLE = 'glibc.malloc.hugetlb=1'
_RESTARTED = 'SWITCH_JAX_RESTARTED'

# Parameters of glibc's mallopt (malloc.h) and what keeps freed memory in the process: one arena for all threads, since
# only the main one holds large blocks; no block with a mapping of its own; nothing given back to the system (-1).
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1
_KEEP_FREED_MEMORY = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))


# The processes of the run that this one belongs to; None on one host.
_group: 'ProcessGroup | None' = None


class ArgumentParser(argparse.ArgumentParser):
  """A parser whose errors are the user's configuration errors."""

  def error(self, message):
    raise ConfigError(f'{message}; see --help.')


def has_tpu() -> bool:
  """Whether TPU chips are attached to this machine, judged by the device files; imports nothing."""
  return bool(glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*'))


def runs_on_cpu() -> bool:
  """Whether JAX will compute on the CPU, judged by the environment and the device files; imports nothing."""
  if platforms := os.environ.get('JAX_PLATFORMS'):
    return platforms == 'cpu'
  return not (has_tpu() or glob.glob('/dev/nvidia[0-9]*') or os.path.exists('/dev/kfd'))


def _huge_pages_available() -> bool:
  if not sys.platform.startswith('linux'):
    return False
  try:
    name, version = (os.confstr('CS_GNU_LIBC_VERSION') or '').split()
    major, minor = version.split('.')[:2]
    setting = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled').read_text()
    return name == 'glibc' and (int(major), int(minor)) >= (2, 35) and '[never]' not in setting
  except (ValueError, OSError):
    return False


def restart_with_huge_pages() -> None:
  """On a CPU, starts this process again with huge pages for malloc, unless the user has set GLIBC_TUNABLES.

  XLA:CPU allocates its temporaries anew in every step; with huge pages a training step was seen to take 0.67 to 0.85
  of the time, with the same bits. glibc reads the setting only when a process starts, hence the exec: same
  process id, same arguments, before anything large is imported. GLIBC_TUNABLES= (empty) turns it off.
  """
  asked = 'GLIBC_TUNABLES' in os.environ or _RESTARTED in os.environ
  if asked or not sys.executable or not runs_on_cpu() or not _huge_pages_available():
    return
  # The second variable ends it if something strips GLIBC_TUNABLES from the environment on the way.
  environment = {**os.environ, 'GLIBC_TUNABLES': _TUNABLE, _RESTARTED: '1'}
  try:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
  except OSError:
    return  # It is only about speed.


def keep_freed_memory() -> bool:
  """On a CPU, lets malloc keep what is freed for the next step; returns whether it did.

  XLA:CPU allocates all temporaries of a step anew. As glibc's malloc starts out, each of them is mapped, faulted in
  page by page and unmapped again in every step: a quarter of the time of a step with many experts. To be called before
  other threads run. The process then keeps its largest size until it ends. Any variable MALLOC_... turns this off.
  """
  if (
    not sys.platform.startswith('linux') or not runs_on_cpu() or any(name.startswith('MALLOC_') for name in os.environ)
  ):
    return False
  if not (os.confstr('CS_GNU_LIBC_VERSION') or '').startswith('glibc'):
    return False
  mallopt = ctypes.CDLL(None).mallopt
  return all(mallopt(parameter, value) for parameter, value in _KEEP_FREED_MEMORY)


def quiet_logging(debug: bool) -> None:
  """Silences what libraries log, and the noise of a TPU library on a machine without a TPU."""
  if not debug:
    # Also errors: Orbax logs three tracebacks of each one before it raises it, and then we say it in one line.
    for name in ('absl', 'orbax', 'etils'):
      logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  if runs_on_cpu() and importlib.util.find_spec('libtpu'):
    # For ahead-of-time compilation libtpu may be installed anywhere; without chips JAX would try it and complain.
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')


def use_compilation_cache(directory: str | None) -> None:
  """Makes compiled programs survive the process: a restart then compiles nothing anew.

  Args:
    directory: None for `xla` in the cache directory (or what JAX_COMPILATION_CACHE_DIR says), `off` for no cache.

  Raises:
    ConfigError: a directory was asked for and cannot be written.
  """
  import jax

  if directory == 'off':
    jax.config.update('jax_enable_compilation_cache', False)
    return
  # The default threshold of one second would skip dozens of small programs at every start.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  if directory is None and jax.config.jax_compilation_cache_dir:
    return
  path = pathlib.Path(directory).expanduser() if directory else cache_directory() / 'xla'
  try:
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
      raise PermissionError(f'{path} is not writable')
  except OSError as error:
    if directory:
      raise ConfigError(
        f'--compilation_cache_dir={directory} cannot be used ({error}); give a folder that can be written, or off.'
      ) from None
    print(f'note: compiled programs are not kept ({error}); set SWITCH_JAX_CACHE to change that', file=sys.stderr)
    return
  jax.config.update('jax_compilation_cache_dir', str(path))


def compile_for_absent_tpus() -> None:
  """Prepares the process for ahead-of-time compilation: it leaves a TPU alone that may be attached."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  use_compilation_cache('off')  # or the seconds of a compilation would be those of reading it


def check_hosts(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Checks the three flags of a run on several hosts.

  Raises:
    ConfigError: only some of the three are given, or they contradict each other.
  """
  given = {
    '--coordinator_address': coordinator_address,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    return
  if missing:
    raise ConfigError(f'{" and ".join(missing)} must be given too: several hosts need all three of {", ".join(given)}.')
  host, _, port = coordinator_address.rpartition(':')
  if not host or not port.isdigit():
    raise ConfigError(
      f'--coordinator_address is {coordinator_address!r}; it must be HOST:PORT of process 0, as 10.0.0.1:1234.'
    )
  if num_processes < 1 or not 0 <= process_id < num_processes:
    raise ConfigError(
      f'--process_id is {process_id} with --num_processes={num_processes}; there must be at least 1 process, and they '
      'are numbered from 0 to num_processes - 1.'
    )


def join_hosts(
  coordinator_address: str | None, num_processes: int | None, process_id: int | None, seconds: float
) -> None:
  """Connects the processes of a run on several hosts; does nothing on one.

  From then on the failure of one process ends all of them; `exit_status` is what tells them.

  Args:
    coordinator_address: host:port of process 0; None on one host, and on Cloud TPU, which knows its own hosts.
    num_processes: how many processes there are.
    process_id: which one this is.
    seconds: how long the others are waited for.

  Raises:
    ConfigError: the others cannot be reached.
  """
  if coordinator_address is None:
    coordinator_address, num_processes, process_id = _cloud_tpu_hosts(seconds)
  if coordinator_address is None or num_processes is None or process_id is None:
    return
  import jax

  from switch_jax.parallel import process_group

  global _group
  if runs_on_cpu():
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  _group = process_group.join(coordinator_address, num_processes, process_id, seconds)
  _group.start()
  _delay_abort()
  if process_id:
    time.sleep(0.1)  # JAX's service starts in process 0 now; a connection refused would be tried again after a second
  try:
    jax.distributed.initialize(coordinator_address, num_processes, process_id)
  except (RuntimeError, ValueError) as error:
    raise ConfigError(
      f'process {process_id} could not join {coordinator_address}: {error}. Is the same command, with its own '
      '--process_id, running on every host?'
    ) from None


def _delay_abort() -> None:
  """Lets an abort take six seconds, in which the process can say in a line which other process has died.

  If process 0 is killed, JAX's coordination service goes with it, and JAX aborts all others from C++ in the same
  milliseconds in which `_group` hears of it. The signal's handler is C's sleep, called with the number of the signal;
  when it returns, the abort goes on.
  """
  if sys.platform.startswith('linux'):
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _cloud_tpu_hosts(seconds: float) -> tuple[str | None, int | None, int | None]:
  """Returns what a Cloud TPU slice knows of its hosts, as the flags would say it; None three times on one host."""
  workers = os.environ.get('TPU_WORKER_HOSTNAMES', '')
  slices = os.environ.get('MEGASCALE_NUM_SLICES', '')
  if not has_tpu() or (workers and ',' not in workers and slices in ('', '1')):
    return None, None, None
  # JAX detects this inside `initialize` too, but has no public name for it, and the others are looked for before that.
  from jax._src.clusters import ClusterEnv

  address, count, process, _ = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, seconds)
  return address, count, process


@contextlib.contextmanager
def _in_company() -> Iterator[None]:
  """A context whose error ends the other processes of the run too; does nothing on one host."""
  try:
    yield
  except BaseException as error:
    if _group:
      message = 'interrupted' if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
      is_own = isinstance(error, (ConfigError, KeyboardInterrupt))
      _group.fail(message, may_be_an_echo=not is_own)
    raise
  if _group:
    _group.leave()


def exit_status(run: Callable[[Sequence[str]], int], argv: Sequence[str], *, interrupted: str) -> int:
  """Runs a command line and turns what it raises into messages and an exit status.

  Args:
    run: takes the arguments and returns the exit status.
    argv: the arguments; with `--debug` among them a user's error has its traceback too.
    interrupted: what follows `interrupted; ` after Ctrl-C.

  Returns:
    The status of `run`, 1 after an error, 130 after Ctrl-C.
  """
  status = _status(run, argv, interrupted)
  if _group and _group.is_failing:
    _group.leave_after_failure(status)
  return status


def _status(run: Callable[[Sequence[str]], int], argv: Sequence[str], interrupted: str) -> int:
  try:
    with _in_company():
      return run(argv)
  except ConfigError as error:
    if '--debug' in argv:
      traceback.print_exc()
    print(f'error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print(f'\ninterrupted; {interrupted}', file=sys.stderr)
    return 130
  except Exception as error:
    traceback.print_exc()
    print(
      f'error: unexpected {type(error).__name__} (see above). This is a bug of switch_jax, or of the task or the '
      'machine it runs on; please report it with the command, the traceback and the output of --version.',
      file=sys.stderr,
    )
    return 1
