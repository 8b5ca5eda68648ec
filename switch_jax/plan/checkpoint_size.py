"""How many bytes of a run's state each host writes for a checkpoint, from abstract arrays only.

Orbax writes each array's shards once. Those that several devices hold are cut into as many pieces where a dimension
divides, and each device writes its own (replica-parallel saving); otherwise the first of these devices writes them.
"""

import collections
import math
from typing import Any

import jax


def bytes_by_host(state: Any) -> dict[int, int]:
  """Returns the bytes of arrays that each host writes, before compression, by the number of its process.

  Args:
    state: a pytree of arrays or of `jax.ShapeDtypeStruct`, with shardings over all devices.
  """
  sizes: collections.Counter[int] = collections.Counter()
  known: dict[Any, dict[int, int]] = {}
  for leaf in jax.tree.leaves(state):
    key = (leaf.sharding, leaf.shape)
    if key not in known:
      known[key] = _values_by_host(leaf.sharding, leaf.shape)
    for host, values in known[key].items():
      sizes[host] += values * leaf.dtype.itemsize
  return dict(sorted(sizes.items()))


def _values_by_host(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> dict[int, int]:
  """Returns how many values of one array each host writes."""
  holders = collections.defaultdict(list)
  for device, index in sharding.devices_indices_map(shape).items():
    holders[tuple(part.indices(size) for part, size in zip(index, shape, strict=True))].append(device.process_index)
  shard = sharding.shard_shape(shape)
  values: collections.Counter[int] = collections.Counter()
  for hosts in holders.values():
    divides = any(size % len(hosts) == 0 for size in shard)
    for host in hosts:
      values[host] += math.prod(shard) // len(hosts) if divides else 0
    if not divides:
      values[hosts[0]] += math.prod(shard)
  return dict(values)
