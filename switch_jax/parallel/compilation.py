"""Processes that run a compiled program together have all compiled it first."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from switch_jax.parallel.hosts import LONG_WORK, exchange


def compiled_by_all(jitted: Any, name: str) -> Callable[..., Any]:
  """Returns a jitted function that several processes begin to run when each of them has compiled it.

  A collective operation of emulated devices waits 30 s for the other processes and then fails, and one of them may
  compile for that much longer than another: it found less in its cache, or has a slower machine. Here they wait for
  each other without devices, and say for whom. Of one process nothing changes.

  Args:
    jitted: from `jax.jit`. The shapes of its first argument (state or parameters) never change.
    name: in words, for messages; all processes call it in the same order.
  """
  if jax.process_count() == 1:
    return jitted
  known: set[tuple[tuple[int, ...], ...]] = set()

  @functools.wraps(jitted)
  def call(*arguments: Any) -> Any:
    shapes = tuple(x.shape for x in jax.tree.leaves(arguments[1:]))
    if shapes not in known:
      jitted.lower(*arguments).compile()  # kept by JAX for the call below
      exchange(f'compiled {name}', None, LONG_WORK)
      known.add(shapes)
    return jitted(*arguments)

  return call
