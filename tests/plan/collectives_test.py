"""Collectives are counted from the text of a compiled program."""

import jax
import numpy as np
import pytest

from switch_jax.config import MeshConfig
from switch_jax.parallel import make_mesh
from switch_jax.plan.collectives import collectives, summary

TEXT = """\
HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%condition (state: (s32[], bf16[8,4])) -> pred[] {
  %state = (s32[], bf16[8,4]) parameter(0)
  %turn = s32[] get-tuple-element(%state), index=0
  %turns = s32[]{:T(128)} constant(6)
  ROOT %less = pred[] compare(%turn, %turns), direction=LT
}

%body (state: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %state = (s32[], bf16[8,4]) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%state), index=1
  %y = bf16[8,4]{1,0} all-to-all(bf16[8,4]{1,0} %x), metadata={op_name="jit(step)/mlp/all_to_all"}
  ROOT %out = (s32[], bf16[8,4]) tuple(%turn, %y)
}

ENTRY %main (p: bf16[8,4], q: f32[3]) -> f32[3] {
  %p = bf16[8,4]{1,0} parameter(0)
  %q = f32[3]{0} parameter(1)
  %loop = (s32[], bf16[8,4]) while(%start), condition=%condition, body=%body
  %begin = (bf16[8,4], bf16[16,4]) all-gather-start(bf16[8,4]{1,0} %p), dimensions={0}
  %gathered = bf16[16,4]{1,0} all-gather-done(%begin)
  %all-reduce-scatter.1 = f32[2]{0} fusion(f32[4]{0} %q), kind=kCustom, calls=%sum
  ROOT %total = f32[3]{0} all-reduce(f32[3]{0} %q), to_apply=%sum
}
"""


def test_every_kind_is_counted_as_often_as_it_runs():
  assert summary(collectives(TEXT)) == {
    'all-to-all': {'count': 6, 'bytes': 6 * 64},
    'all-gather': {'count': 1, 'bytes': 128},
    'reduce-scatter': {'count': 1, 'bytes': 16},
    'all-reduce': {'count': 1, 'bytes': 12},
  }


def test_a_ragged_exchange_counts_as_if_it_filled_what_it_writes_to():
  line = (
    '  %x = bf16[16,2,128]{2,1,0} ragged-all-to-all(bf16[64,256] %p, bf16[16,256] %zeros, s32[8] %a, s32[8] %b, '
    's32[8] %c, s32[8] %d), replica_groups={{0,1,2,3}}'
  )
  (found,) = collectives(f'ENTRY %main (p: bf16[64,256]) -> bf16[16,2,128] {{\n{line}\n}}\n')
  assert (found.kind, found.bytes, found.group_size) == ('all-to-all', 16 * 256 * 2, 4)


def test_names_are_those_of_the_program():
  assert [c.name for c in collectives(TEXT) if c.kind == 'all-to-all'] == ['jit(step)/mlp/all_to_all']


@pytest.mark.parametrize(('turns', 'count'), [(None, 1), (5, 5)])
def test_loop_that_does_not_tell_its_turns(turns, count):
  text = TEXT.replace('constant(6)', 'get-tuple-element(%state), index=2')
  assert summary(collectives(text, turns))['all-to-all']['count'] == count


def test_turns_that_xla_has_noted():
  text = TEXT.replace('body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"9"}}')
  assert summary(collectives(text))['all-to-all']['count'] == 9


@pytest.mark.parametrize(
  ('groups', 'size'), [('replica_groups={{0,1,2,3},{4,5,6,7}}', 4), ('replica_groups=[16,2]<=[32]', 2), ('', None)]
)
def test_how_many_take_part(groups, size):
  text = TEXT.replace('metadata={op_name', f'{groups}, metadata={{op_name')
  assert [c.group_size for c in collectives(text) if c.kind == 'all-to-all'] == [size]


def test_a_ragged_exchange_is_one_too():
  assert summary(collectives(TEXT.replace(' all-to-all(', ' ragged-all-to-all(')))['all-to-all']['count'] == 6


def test_on_a_program_of_this_machine():
  mesh = make_mesh(MeshConfig(), None)
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))

  def turn(x, _):
    return jax.lax.psum(x, 'data') * 0.1, None

  local = lambda x: jax.lax.scan(turn, jax.lax.psum(x, 'data'), None, length=5)[0]  # noqa: E731
  spec = jax.sharding.PartitionSpec
  step = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec('data'), out_specs=spec(), check_vma=False))
  text = step.lower(jax.ShapeDtypeStruct((8, 16), np.float32, sharding=sharding)).compile().as_text()
  assert summary(collectives(text)) == {'all-reduce': {'count': 6, 'bytes': 6 * 64}}
