"""Which rows of the global batch come from which stream, and which of them this process makes.

The training data is cut into `num_data_shards` logical streams, each shuffled and packed alone. Rows
[s * n, (s + 1) * n) of every global batch come from stream s, with n = batch_size / num_data_shards. So what a batch
holds does not depend on how many hosts there are; a host builds the streams whose rows its devices hold, and no others.
"""

import dataclasses
from collections.abc import Mapping
from typing import Self

import jax
import numpy as np

from switch_jax.config import ConfigError, DataConfig

# Rows of a batch by the name of their feature: on this host, and as global arrays on the devices.
HostBatch = dict[str, np.ndarray]
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowLayout:
  """Where the rows of the global batch come from and go to.

  Attributes:
    batch_size: rows of the global batch.
    num_streams: streams that fill it.
    sharding: of arrays [batch, length].
    streams: those whose rows this process's devices hold.
    owned_streams: of those, the ones whose position this process saves: each stream has one owner.
  """

  batch_size: int
  num_streams: int
  sharding: jax.sharding.Sharding
  streams: tuple[int, ...]
  owned_streams: tuple[int, ...]

  @classmethod
  def of(cls, config: DataConfig, sharding: jax.sharding.Sharding) -> Self:
    """Works out the layout.

    Raises:
      ConfigError: the batch does not divide over the devices, or the streams do not divide over the hosts.
    """
    hosts = jax.process_count()
    if config.num_data_shards % hosts:
      raise ConfigError(
        f'DataConfig.num_data_shards is {config.num_data_shards}; it must be a multiple of the number of hosts, '
        f'{hosts}, so that each reads whole streams; use {-(-config.num_data_shards // hosts) * hosts}.'
      )
    shape = (config.batch_size, 1)
    try:
      indices = sharding.devices_indices_map(shape)
    except ValueError as error:
      raise ConfigError(
        f'DataConfig.batch_size is {config.batch_size}, which the mesh does not divide into equal rows a device '
        f'({error}); use a multiple of the devices of the data and expert axes.'
      ) from error
    rows_per_stream = config.batch_size // config.num_data_shards
    holders: dict[int, set[int]] = {}
    for device, index in indices.items():
      process = device.process_index  # type: ignore[attr-defined]  # JAX annotates it with a variable, not a class
      start, stop, _ = index[0].indices(config.batch_size)
      for stream in range(start // rows_per_stream, -(-stop // rows_per_stream)):
        holders.setdefault(stream, set()).add(process)
    here = jax.process_index()
    return cls(
      batch_size=config.batch_size,
      num_streams=config.num_data_shards,
      sharding=sharding,
      streams=tuple(sorted(stream for stream, processes in holders.items() if here in processes)),
      owned_streams=tuple(sorted(stream for stream, processes in holders.items() if min(processes) == here)),
    )

  def to_global(self, batches: Mapping[int, HostBatch]) -> Batch:
    """Makes global arrays.

    Args:
      batches: for each of `streams`, its rows: arrays [batch_size / num_streams, length].

    Returns:
      Arrays [batch_size, length] laid out by `sharding`.
    """
    rows_per_stream = self.batch_size // self.num_streams
    result = {}
    for name, example in batches[self.streams[0]].items():
      # Rows of other hosts stay untouched, and the pages they would lie in are never used.
      rows = np.empty((self.batch_size, *example.shape[1:]), example.dtype)
      for stream, batch in batches.items():
        rows[stream * rows_per_stream : (stream + 1) * rows_per_stream] = batch[name]
      result[name] = rows_to_global(rows, self.sharding)
    return result


def rows_to_global(rows: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
  """Makes a global array of rows that are right at least where this process's devices hold them.

  Args:
    rows: [batch, length].
    sharding: of the result.
  """
  # A callback is asked for exactly what each local device holds, so any mesh works, also one whose model axis crosses
  # hosts, where several hold the same rows.
  return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])
