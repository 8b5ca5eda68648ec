"""Says that a checkpoint is waited for: a store that does not answer is tried again for minutes without a word."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator

# A save of the largest states takes seconds on the training thread, and is over long before the next one begins.
SECONDS_TO_WARNING = 30.0

_logger = logging.getLogger('switch_jax.checkpoints')


@contextlib.contextmanager
def said_if_slow(path: str | os.PathLike[str]) -> Iterator[None]:
  """A context in which training waits for the writing of a step; after a while that is said, once."""
  text = '%s is still being written; training waits for it. Is its disk or store slow or out of reach?'
  timer = threading.Timer(SECONDS_TO_WARNING, _logger.warning, (text, path))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
    timer.join()
