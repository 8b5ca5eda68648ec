"""What each host writes, on hosts that are only pretended; the sums are those of the state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from switch_jax.plan import checkpoint_size
from switch_jax.plan.checkpoint_size import bytes_by_host


class Sharding:
  """A sharding over eight devices of four hosts."""

  def __init__(self, *spec):
    mesh = jax.make_mesh((2, 4), ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)
    self._of_one_host = NamedSharding(mesh, PartitionSpec(*spec))
    self.shard_shape = self._of_one_host.shard_shape

  def devices_indices_map(self, shape):
    indices = self._of_one_host.devices_indices_map(shape)
    return {Device(device.id // 2): index for device, index in indices.items()}


class Device:
  def __init__(self, process_index):
    self.process_index = process_index


class Leaf:
  def __init__(self, shape, *spec, dtype=jnp.float32):
    self.shape, self.sharding, self.dtype = shape, Sharding(*spec), np.dtype(dtype)


@pytest.mark.parametrize(
  ('leaf', 'expected'),
  [
    (Leaf((8, 16), 'data', 'expert'), [128, 128, 128, 128]),  # each device has a part to itself
    (Leaf((8, 16), 'expert'), [128, 128, 128, 128]),  # of two replicas each writes half
    (Leaf((16, 3)), [48, 48, 48, 48]),  # so do eight
    (Leaf((3, 5)), [60, 0, 0, 0]),  # what does not divide is written by the first
    (Leaf((), dtype=jnp.int32), [4, 0, 0, 0]),
    (Leaf((8, 3, 1), 'expert', dtype=jnp.bfloat16), [12, 12, 12, 12]),
  ],
)
def test_one_array(leaf, expected):
  found = bytes_by_host([leaf])
  assert [found.get(host, 0) for host in range(4)] == expected


def test_a_state_is_written_once_and_shardings_are_looked_at_once(monkeypatch):
  calls, real = [], checkpoint_size._values_by_host
  monkeypatch.setattr(checkpoint_size, '_values_by_host', lambda *args: (calls.append(args), real(*args))[1])
  mesh = jax.make_mesh((2, 4), ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)
  sharding = NamedSharding(mesh, PartitionSpec('expert'))
  state = {n: jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=sharding) for n in 'abc'}
  assert bytes_by_host(state) == {0: 3 * 8 * 4 * 4}
  assert len(calls) == 1
