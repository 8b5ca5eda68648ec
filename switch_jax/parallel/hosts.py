"""What the processes of a run tell each other outside the devices: JSON values."""

import collections
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax._src import distributed

from switch_jax.config import ConfigError

# Seconds after which it is said who is waited for.
PATIENCE = 10.0
# Seconds that are given to work whose time grows with the model: compiling, reading a checkpoint. A process that dies
# meanwhile is noticed by the others (`process_group`).
LONG_WORK = 86_400.0

_calls: collections.Counter[str] = collections.Counter()


def _distributed() -> Any:
  """JAX's coordination service: `client` has a key-value store, which needs no device and nothing compiled.

  JAX has no public name for it; this is the only place that uses the private one. jax.process_count() is none: it
  would open the devices, for which JAX already waits for all processes.
  """
  return distributed.global_state


def name_processes(numbers: Sequence[int], count: int) -> str:
  """Returns `process 1 of 2`, or `processes 1, 2, 3 and 5 more of 16`."""
  shown = [str(number) for number in numbers[:3]]
  if len(numbers) > 3:
    shown.append(f'{len(numbers) - 3} more')
  text = shown[0] if len(shown) == 1 else f'{", ".join(shown[:-1])} and {shown[-1]}'
  return f'process{"es" if len(numbers) > 1 else ""} {text} of {count}'


def exchange(name: str, value: Any, seconds: float = 300.0) -> list[Any]:
  """Gives a value of this process to all others; all processes must call it in the same order of names.

  Args:
    name: what is exchanged, in words for messages; a name may be used again and again.
    value: plain JSON.
    seconds: how long each of the others is waited for.

  Returns:
    The values of all processes in their order, as JSON gives them back; with one process `[value]`, at once.

  Raises:
    ConfigError: a process did not give its value in time.
  """
  state, prefix = _distributed(), f'switch_jax/{name}/{_calls[name]}'
  store, count = state.client, state.num_processes
  if store is None or count == 1:
    return [value]
  _calls[name] += 1
  store.key_value_set(f'{prefix}/{state.process_id}', json.dumps(value))
  began, said, values = time.monotonic(), False, []
  for process in range(count):
    while True:
      left = began + (seconds if said else min(PATIENCE, seconds)) - time.monotonic()
      try:
        values.append(json.loads(store.blocking_key_value_get(f'{prefix}/{process}', max(1, int(1000 * left)))))
        break
      except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
          raise ConfigError(f'{name}: the connection to process 0 was lost ({str(error).splitlines()[0]}).') from None
      who = name_processes([process], count)
      if time.monotonic() - began >= seconds:
        raise ConfigError(
          f'{who} has not given its {name} within {seconds:g} s. See to what it does, and start all processes again.'
        )
      if not said:
        print(f'waiting for {who} ({name})', file=sys.stderr, flush=True)
        said = True
  return values
