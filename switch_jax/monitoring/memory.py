"""Memory in use, as metrics."""

import os
import pathlib

import jax

_GIB = 2**30


def memory_metrics(device: jax.Device) -> dict[str, float]:
  """Returns `host_memory_gib`, this process's resident memory, and, of devices that tell, the peak of their own."""
  metrics = {}
  try:
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    metrics['host_memory_gib'] = pages * os.sysconf('SC_PAGE_SIZE') / _GIB
  except (OSError, ValueError, IndexError):
    pass  # not Linux
  if peak := (device.memory_stats() or {}).get('peak_bytes_in_use'):
    metrics['device_memory_peak_gib'] = peak / _GIB
  return metrics
