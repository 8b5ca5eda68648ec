"""Meshes and layout rules that cannot be."""

import pytest

from switch_jax.config import ConfigError, MeshConfig
from switch_jax.config.mesh import DEFAULT_RULES, LOGICAL_AXES


def test_every_logical_axis_has_a_rule():
  assert set(DEFAULT_RULES) == set(LOGICAL_AXES)


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
  config = MeshConfig(rules={'expert': ('data', 'expert'), 'embed': 'data', 'expert_mlp': None})
  assert MeshConfig.from_json(config.to_json()) == config
