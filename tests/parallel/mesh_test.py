"""The shape of the mesh from what was asked for, and every way in which it cannot be."""

import jax
import pytest

from switch_jax.config import ConfigError, MeshConfig
from switch_jax.parallel import make_mesh, mesh_shape

FULLY_SHARDED = {'expert': ('data', 'expert'), 'embed': 'data', 'joined_kv': 'expert', 'vocab': 'expert'}
SWITCH_C = {'embed': (2080,), 'joined_kv': (1920,), 'vocab': (32128,), 'heads': (30,)}


@pytest.mark.parametrize(
  ('config', 'devices', 'experts', 'shape'),
  [
    ({}, 8, None, (8, 1, 1)),
    ({}, 8, 8, (1, 8, 1)),
    ({}, 8, 4, (2, 4, 1)),
    ({}, 8, 16, (1, 8, 1)),
    ({}, 8, 6, (4, 2, 1)),
    ({}, 32, 128, (1, 32, 1)),
    ({}, 1, 8, (1, 1, 1)),
    (dict(model=2), 8, 8, (1, 4, 2)),
    (dict(data=2, expert=None, model=2), 8, 4, (2, 2, 2)),
    (dict(data=2, expert=2, model=-1), 8, 4, (2, 2, 2)),
    (dict(data=2, expert=-1), 8, 8, (2, 4, 1)),
    (dict(data=1, expert=1, model=-1), 8, 3, (1, 1, 8)),
    (dict(expert=None, data=1, model=-1), 8, 4, (1, 4, 2)),
    (dict(num_slices=2), 8, 8, (2, 4, 1)),
    (dict(num_slices=2, data=4), 8, 8, (4, 2, 1)),
    (dict(num_slices=4, model=2), 8, 8, (4, 1, 2)),
  ],
)
def test_shape(config, devices, experts, shape):
  assert mesh_shape(MeshConfig(**config), devices, experts) == shape


@pytest.mark.parametrize(
  ('rules', 'shape'),
  [
    ({}, (1, 2048, 1)),
    # 128 is the largest that divides 1920 and 32128, and the 16 of data divide 2080.
    (FULLY_SHARDED, (16, 128, 1)),
  ],
  ids=['expert_data', 'fully_sharded'],
)
def test_the_largest_expert_axis_over_which_all_divides(rules, shape):
  assert mesh_shape(MeshConfig(rules=rules), 2048, 2048, SWITCH_C) == shape


@pytest.mark.parametrize(
  ('config', 'experts', 'message'),
  [
    (dict(data=3), 8, r'asks for a multiple of 3 devices and there are 8.* Each axis can be one of 1, 2, 4, 8\.'),
    (dict(data=2, expert=2, model=1), 8, r'is 4 devices and there are 8; .* Set one of them to -1'),
    (dict(data=1, expert=8, model=1), 12, r'expert is 8 and the model has 12 experts; .*Use one of 1, 2, 4, or a'),
    (dict(data=2, num_slices=2, expert=1, model=2), 8, r'is 4 devices and there are 8'),
    (dict(num_slices=3), 8, r'num_slices=3\) asks for a multiple of 3 devices'),
    (dict(rules={'expert': ('data', 'expert')}), 4, r"over data x expert = 8 .* its 4;.*'expert': 'expert'"),
    (dict(expert=8, rules={'embed': 'expert'}), 8, r"'embed' .* over expert = 8 devices.* its 12; expert can be 1, 2"),
  ],
)  # fmt: skip
def test_what_does_not_divide_is_refused(config, experts, message):
  with pytest.raises(ConfigError, match=message):
    mesh_shape(MeshConfig(**config), 8, experts, {'embed': (12,)})


def test_slices_are_joined_by_the_data_axis():
  """Emulated devices know no slices: they are taken in equal runs."""
  mesh = make_mesh(MeshConfig(num_slices=2, data=4, model=2), 8)
  assert dict(mesh.shape) == {'data': 4, 'expert': 1, 'model': 2}
  devices = jax.devices()
  assert mesh.devices[:2].flatten().tolist() == devices[:4]
  assert mesh.devices[2:].flatten().tolist() == devices[4:]


class FakeTpu:
  platform, device_kind = 'tpu', 'TPU v5 lite'

  def __init__(self, slice_index):
    self.slice_index = slice_index


def test_number_of_slices_is_that_of_the_machine():
  devices = [FakeTpu(index) for index in (0, 0, 1, 1)]
  with pytest.raises(
    ConfigError, match=r'num_slices is 1 and the 4 devices are in 2 slices; set MeshConfig.num_slices=2'
  ):
    make_mesh(MeshConfig(), 4, devices)
