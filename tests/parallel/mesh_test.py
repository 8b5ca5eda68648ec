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


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (dict(data=0), 'at least 1 device'),
    (dict(data=-1, model=-1), 'only one axis may be -1'),
    (dict(data=3, num_slices=2), r'the 2 slices share the data axis; use a multiple of 2'),
    (dict(num_slices=0), 'must be at least 1'),
    (dict(num_slices=2, rules={'expert': ('data', 'expert')}), 'experts on the data axis, which goes across slices'),
    (dict(rules={'embd': 'data'}), r"name the logical axis 'embd'; known are .*Did you mean 'embed'\?"),
    (dict(rules={'embed': 'dta'}), r"names the mesh axis 'dta'; use data, expert, model\. Did you mean 'data'\?"),
    (dict(rules={'embed': ('data', 'data')}), 'name each mesh axis once'),
    (dict(rules={'embed': 'data', 'mlp': 'data'}), r"both 'embed' and 'mlp' on the mesh axis 'data'"),
    (dict(rules={'embed': 'model'}), r"both 'embed' and 'mlp' on the mesh axis 'model'"),
    (dict(rules={'expert_embed': 'expert'}), r"both 'expert' and 'expert_embed' on the mesh axis 'expert'"),
    (dict(rules={'activation_embed': 'data'}), r"both 'batch' and 'activation_embed'"),
    (dict(rules={'batch': 'data'}), r"the layout rule of 'batch' is 'data'; rows are split over"),
    (dict(rules={'expert': 'model', 'expert_mlp': None}), 'experts exchange tokens over'),
    (dict(rules={'embed': 3}), 'it must be a dict of'),
    (dict(rules=[('embed', 'data')]), 'it must be a dict of'),
  ],
)
def test_wrong_settings(config, message):
  with pytest.raises(ConfigError, match=message):
    MeshConfig(**config)


def test_rules_survive_json():
  config = MeshConfig(rules=FULLY_SHARDED | {'expert_mlp': None})
  assert MeshConfig.from_json(config.to_json()) == config


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
