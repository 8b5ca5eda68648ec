"""Instructions of a compiled program, and how often each runs."""

import pytest

from switch_jax.plan.program import instructions, shape_bytes

TEXT = """\
HloModule step

%inner (a: f32[8]) -> f32[8] {
  %a = f32[8] parameter(0)
  ROOT %b = f32[8] negate(%a), backend_config={"estimated_cycles":"1000"}
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]) parameter(0)
  %turn = s32[] get-tuple-element(%state), index=0
  %turns = s32[]{:T(128)} constant(6)
  ROOT %less = pred[] compare(%turn, %turns), direction=LT
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%state), index=1
  %y = f32[8]{0} fusion(%x), kind=kLoop, calls=%inner, metadata={op_name="jit(step)/mlp"}, backend_config={"estimated_cycles":"50"}
  ROOT %out = (s32[], f32[8]) tuple(%turn, %y)
}

%branch (p: f32[8]) -> f32[8] {
  ROOT %copied = f32[8]{0} copy(%p), backend_config={"estimated_cycles":"7"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %loop = (s32[], f32[8]) while(%start), condition=%condition, body=%body
  %either = f32[8]{0} conditional(%p), branch_computations={%branch, %branch}
  ROOT %sorted = f32[8]{0} sort(%either), to_apply=%inner
}
"""  # noqa: E501


def test_bodies_run_as_often_as_their_loop_turns():
  found = {one.name: one for one in instructions(TEXT)}
  assert (found['y'].times, found['y'].cycles, found['y'].op_name) == (6, 50, 'jit(step)/mlp')
  assert (found['sorted'].times, found['sorted'].cycles, found['sorted'].op_name) == (1, None, '')
  assert found['out'].shapes == ['s32[]', 'f32[8]']


def test_parts_of_a_priced_instruction_are_told_apart():
  inner = [one.name for one in instructions(TEXT) if one.is_inner]
  assert inner == ['a', 'b', 'a', 'b']  # of the fusion and of the sort; not of the loop or the branches
  assert sum(one.times * (one.cycles or 0) for one in instructions(TEXT) if not one.is_inner) == 6 * 50 + 2 * 7


@pytest.mark.parametrize(('turns', 'times'), [(None, 1), (5, 5)])
def test_a_loop_that_does_not_tell_its_turns(turns, times):
  text = TEXT.replace('constant(6)', 'get-tuple-element(%state), index=2')
  assert next(one.times for one in instructions(text, turns) if one.name == 'y') == times


@pytest.mark.parametrize(
  ('text', 'size'), [('bf16[128,40,768]{2,1,0}', 7864320), ('(f32[3], s32[])', 16), ('pred[7]', 7), ('token[]', 0)]
)
def test_bytes_of_a_shape(text, size):
  assert shape_bytes(text) == size
