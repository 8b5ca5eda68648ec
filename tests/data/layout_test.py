"""Which host builds which streams, with hosts that are made up."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from switch_jax.config import DataConfig
from switch_jax.data.layout import RowLayout, rows_to_global


class Device:
  """A device of a host."""

  def __init__(self, process_index):
    self.process_index = process_index


class MadeUpSharding:
  """Four devices on two hosts; `rows` says which of eight rows each device holds."""

  def __init__(self, rows):
    self._rows = rows

  def devices_indices_map(self, shape):
    """Returns the index of each device, as JAX's shardings do."""
    del shape
    return {Device(i // 2): (slice(*rows), slice(None)) for i, rows in enumerate(self._rows)}


def layouts(monkeypatch, rows, num_data_shards):
  """Returns the layouts that the two hosts work out."""
  config = DataConfig(
    mixture_or_task_name='any',
    feature_lengths={'inputs': 8, 'targets': 8},
    batch_size=8,
    num_data_shards=num_data_shards,
  )
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  result = []
  for host in (0, 1):
    monkeypatch.setattr(jax, 'process_index', lambda host=host: host)
    result.append(RowLayout.of(config, MadeUpSharding(rows)))
  return result


@pytest.mark.parametrize(
  ('rows', 'streams', 'owned'),
  [
    # Rows split over all devices: each host builds its half.
    ([(0, 2), (2, 4), (4, 6), (6, 8)], [(0, 1), (2, 3)], [(0, 1), (2, 3)]),
    # A model axis across the hosts: both hold all rows and build all streams, one saves them.
    ([(0, 4), (4, 8), (0, 4), (4, 8)], [(0, 1, 2, 3), (0, 1, 2, 3)], [(0, 1, 2, 3), ()]),
    # Devices in another order.
    ([(6, 8), (0, 2), (2, 4), (4, 6)], [(0, 3), (1, 2)], [(0, 3), (1, 2)]),
  ],
)
def test_hosts_build_the_streams_whose_rows_they_hold(monkeypatch, rows, streams, owned):
  found = layouts(monkeypatch, rows, num_data_shards=4)
  assert [layout.streams for layout in found] == streams
  assert [layout.owned_streams for layout in found] == owned


def test_a_stream_may_span_devices(monkeypatch):
  found = layouts(monkeypatch, [(0, 2), (2, 4), (4, 6), (6, 8)], num_data_shards=2)
  assert [layout.streams for layout in found] == [(0,), (1,)]


@pytest.mark.parametrize('spec', [PartitionSpec(('data', 'expert')), PartitionSpec('expert'), PartitionSpec()])
def test_rows_lie_where_the_sharding_says(rows_sharding, spec):
  rows = np.arange(48, dtype=np.int32).reshape(8, 6)
  array = rows_to_global(rows, NamedSharding(rows_sharding.mesh, spec))
  np.testing.assert_array_equal(array, rows)
  for shard in array.addressable_shards:
    np.testing.assert_array_equal(shard.data, rows[shard.index])
