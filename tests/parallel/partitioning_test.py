"""Logical names to partitions: closed lists, no collisions."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from switch_jax.config import ConfigError, MeshConfig
from switch_jax.parallel import Layout, make_mesh


def layout(rules=(), **config):
  return Layout(make_mesh(MeshConfig(**config), 8), tuple(dict(rules).items()))


@pytest.mark.parametrize(
  ('names', 'spec'),
  [
    (('batch', 'length', 'activation_embed'), P(('data', 'expert'), None, None)),
    (('embed', 'mlp'), P(None, 'model')),
    (('layers', 'expert', 'expert_embed', 'expert_mlp'), P(None, 'expert', None, 'model')),
    (('embed', None), P(None, None)),
    ((), P()),
  ],
)
def test_default_rules(names, spec):
  assert layout().spec(*names) == spec


def test_own_rules_win():
  own = layout({'embed': 'data', 'joined_kv': ('expert', 'model')})
  assert own.spec('embed', 'joined_kv') == P('data', ('expert', 'model'))
  assert own.spec('embed', 'mlp') == P('data', 'model')


def test_unknown_name():
  with pytest.raises(ConfigError, match=r"'batsh' is not a logical axis; known are batch, .*Did you mean 'batch'\?"):
    layout().spec('batsh', 'length')


def test_collision():
  with pytest.raises(ConfigError, match=r"put both 'batch' and 'expert' on the mesh axis 'expert'"):
    layout().spec('batch', 'expert', 'embed')


def test_rules_are_checked():
  with pytest.raises(ConfigError, match="name the logical axis 'hedas'"):
    layout({'hedas': 'model'})


def test_experts_over_both_token_axes_have_no_replicas():
  both = layout({'expert': ('data', 'expert')}, data=2)
  assert (both.num_expert_shards, both.replica_axes) == (8, ())
  one = layout(data=2)
  assert (one.num_expert_shards, one.replica_axes) == (4, ('data',))


def test_constrain_places_an_array():
  where = layout(data=2)
  x = jax.jit(lambda x: where.constrain(x, 'batch', 'length'))(jax.numpy.zeros((8, 4)))
  assert x.sharding.is_equivalent_to(where.batch_sharding(), 2)
