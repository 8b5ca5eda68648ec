"""One owner of a folder among runs of several processes: process 0 holds the claim for all of them."""

import contextlib
import os
from collections.abc import Iterator

import jax

from switch_jax.config import ConfigError
from switch_jax.folders.claim import Claim
from switch_jax.parallel.hosts import exchange


@contextlib.contextmanager
def owned(place: str | os.PathLike[str], what: str, remedy: str) -> Iterator[Claim]:
  """Holds the claim of a run; all its processes enter this together.

  Args:
    place: of the claim's file.
    what: as `Claim`.
    remedy: as `Claim`.

  Yields:
    The claim; on other processes than 0 one that was never taken, whose `check` finds nothing wrong.

  Raises:
    ConfigError: on every process, if process 0 is refused.
  """
  claim, refusal = Claim(place, what, remedy), ''
  try:
    if jax.process_index() == 0:
      try:
        claim.take()
      except ConfigError as error:
        refusal = str(error)
    if refusal := exchange(f'the owner of {what.split()[0]}', refusal)[0]:
      raise ConfigError(refusal)
    yield claim
  finally:
    claim.release()
