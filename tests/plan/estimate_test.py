"""Cycles and bytes are added up; what has no price is counted and never negative."""

import pytest

from switch_jax.plan.chips import CHIPS
from switch_jax.plan.collectives import Collective
from switch_jax.plan.estimate import Estimate, bytes_sent, estimate, extrapolate, is_unpriced
from switch_jax.plan.program import Instruction, instructions
from tests.plan.program_test import TEXT


def test_of_a_program():
  text = TEXT.replace('%p = f32[8]{0} parameter(0)', '%p = f32[8]{0} all-reduce(%q), replica_groups={{0,1}}')
  found = estimate(list(instructions(text)), 'TPU v3', 8)
  chip = CHIPS['TPU v3']
  assert found.compute_seconds == pytest.approx((6 * 50 + 2 * 7) / 940e6)
  assert found.exchange_seconds == pytest.approx(2 * 32 / 2 / chip.link_bytes)
  assert found.seconds == found.compute_seconds + found.exchange_seconds
  assert found.unpriced == {'sort': 1}
  assert found.share_of_peak(chip.peak_flops * found.compute_seconds / 4) == pytest.approx(0.25)
  assert estimate([], 'TPU v9', 8) is None


@pytest.mark.parametrize(
  ('opcode', 'shape', 'arguments', 'unpriced'),
  [
    ('sort', 's32[1024]{0}', '%x)', True),
    ('fusion', 'f32[1024]{0}', '%x), calls=%f', True),
    ('fusion', 'f32[1024]{0}', '%x), backend_config={"estimated_cycles":"5"}', False),
    ('multiply', 'f32[]', '%x, %y)', False),
    ('bitcast', 'f32[1024]{0}', '%x)', False),
    ('all-to-all', 'f32[1024]{0}', '%x)', False),
    ('copy-start', '(f32[1024]{0}, f32[1024]{0}, u32[])', '%x)', False),
    ('copy-done', 'f32[1024]{0}', '%x)', False),
    ('custom-call', 'f32[1024]{0}', '%x), custom_call_target="tpu_custom_call"', True),
    ('custom-call', 'f32[1024]{0}', '), custom_call_target="AllocateBuffer"', False),
  ],
)
def test_what_has_no_price(opcode, shape, arguments, unpriced):
  assert is_unpriced(Instruction('x', shape, opcode, arguments, 1, False)) == unpriced
  assert not is_unpriced(Instruction('x', shape, opcode, arguments, 1, True))


@pytest.mark.parametrize(
  ('kind', 'sent'),
  [('all-to-all', 75), ('all-gather', 75), ('reduce-scatter', 75), ('all-reduce', 150), ('collective-permute', 100)],
)
def test_what_leaves_a_device(kind, sent):
  assert bytes_sent(Collective(kind, '', 100, 3, '', 4), 32) == 3 * sent
  assert bytes_sent(Collective(kind, '', 100, 3, '', None), 4) == 3 * sent


def test_a_kernel_is_priced_by_what_it_declares():
  declared = '"cost_estimate":{"flops":"6000","transcendentals":"512","bytes_accessed":"1"}'
  kernel = Instruction(
    'k', 'f32[1024]{0}', 'custom-call', f'%x), custom_call_target="tpu_custom_call", {declared}', 3, False
  )
  found, chip = estimate([kernel], 'TPU v3', 1), CHIPS['TPU v3']
  assert found.kernel_seconds == pytest.approx(3 * (2 * 6000 / chip.peak_flops + 16 * 512 / 1024 / 940e6))
  assert found.compute_seconds == found.kernel_seconds
  assert found.unpriced == {}


def test_more_layers_from_two_depths():
  few, more = Estimate(1.0, 0.5, 0.1, {'sort': 2}, 1e12), Estimate(1.5, 0.75, 0.2, {'sort': 4, 'fusion': 1}, 1e12)
  found = extrapolate(few, more, 5)
  assert (found.compute_seconds, found.kernel_seconds) == (3.5, 1.75)
  assert found.exchange_seconds == pytest.approx(0.6)
  assert found.unpriced == {'fusion': 5, 'sort': 12}
