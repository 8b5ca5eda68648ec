"""The one place that imports TensorFlow and SeqIO: quietly, on the CPU, with bounded threads.

TensorFlow's native code writes to file descriptor 2 before any log level applies, both while it is imported and when
its first operation runs, so only redirecting the descriptor around both keeps the terminal for this program. What was
written is shown after all when the import fails. Import `tf` and `seqio` from here, and nowhere else:

    from switch_jax.data.quiet_tensorflow import seqio, tf
"""

import contextlib
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator

# Threads of TensorFlow's own pools. A pool per core of a large host would hold that many more examples in flight, and
# each saved data position would carry them.
MAX_THREADS = 16


def num_threads() -> int:
  """Returns how many threads TensorFlow may use: one for each core this process may run on, at most 16."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  return min(MAX_THREADS, cores)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
  """Sends file descriptor 2 to a temporary file; repeats what it caught if the body raises."""
  sys.stderr.flush()
  with tempfile.TemporaryFile() as caught:
    saved = os.dup(2)
    os.dup2(caught.fileno(), 2)
    failed = True
    try:
      yield
      failed = False
    finally:
      sys.stderr.flush()
      os.dup2(saved, 2)
      os.close(saved)
      if failed:
        caught.seek(0)
        sys.stderr.write(caught.read().decode('utf-8', errors='replace'))


def _configure(tensorflow: types.ModuleType) -> None:
  """Leaves the accelerators to JAX and bounds the thread pools."""
  # Both settings are refused once TensorFlow has run an operation, that is when somebody imported it before us.
  with contextlib.suppress(RuntimeError):
    for device in ('GPU', 'TPU'):
      tensorflow.config.set_visible_devices([], device)
    tensorflow.config.threading.set_intra_op_parallelism_threads(num_threads())
    tensorflow.config.threading.set_inter_op_parallelism_threads(num_threads())
  tensorflow.constant(0)


os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# oneDNN speeds up nothing that a data pipeline does, and says later, past our redirection, what it cannot do.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
with _quiet_stderr(), warnings.catch_warnings():
  warnings.simplefilter('ignore')  # deprecations inside other people's packages
  import tensorflow as tf

  _configure(tf)
  import seqio

__all__ = ['num_threads', 'seqio', 'tf']
