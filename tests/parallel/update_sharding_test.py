"""How parameters that all token shards use are split among them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from switch_jax.config import MeshConfig
from switch_jax.parallel import Layout, make_mesh
from switch_jax.parallel.update_sharding import split_over_tokens

BOTH = ('data', 'expert')


def split(shape, names, mesh, **rules):
  config = MeshConfig(**dict(zip(('data', 'expert', 'model'), mesh, strict=True)), rules=rules)
  layout = Layout.of(config, make_mesh(config, 8, jax.devices()))
  whole = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=layout.sharding(*names))
  return split_over_tokens(layout, whole, names).sharding.spec


@pytest.mark.parametrize(
  ('shape', 'names', 'mesh', 'expected'),
  [
    ((512, 256), ('embed', 'mlp'), (2, 4, 1), P(BOTH, 'model')),
    ((512, 256), ('embed', 'mlp'), (2, 2, 2), P(BOTH, 'model')),
    ((512, 256), ('mlp', 'embed'), (2, 2, 2), P(('model', *BOTH), None)),
    ((6, 256, 512), ('layers', 'embed', 'mlp'), (2, 4, 1), P(None, BOTH, 'model')),  # 8 does not divide 6 layers
    ((516, 300), ('embed', 'mlp'), (2, 4, 1), P('expert', 'model')),  # 8 divides neither, 4 does
    ((515, 301), ('embed', 'mlp'), (2, 4, 1), P(None, 'model')),
    ((255, 256), ('embed', 'mlp'), (2, 4, 1), P(None, 'model')),  # small
    ((8, 256, 256), ('expert', 'expert_embed', 'expert_mlp'), (4, 2, 1), P('expert', None, 'model')),
    ((512, 512), ('embed', 'mlp'), (1, 1, 8), P(None, 'model')),  # one token shard
  ],
)
def test_the_first_axis_that_divides_takes_the_idle_token_axes(shape, names, mesh, expected):
  assert split(shape, names, mesh) == expected


def test_what_the_rules_have_split_over_tokens_already_stays():
  assert split((512, 256), ('embed', 'mlp'), (2, 4, 1), embed=BOTH) == P(BOTH, 'model')
  assert split((512, 256), ('embed', 'mlp'), (2, 4, 1), embed='data') == P(('data', 'expert'), 'model')
