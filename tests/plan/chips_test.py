"""Figures of the devices that the compiler knows."""

import math

import pytest

from switch_jax.plan.chips import CHIPS


@pytest.mark.parametrize('kind', CHIPS)
def test_the_peak_is_a_whole_number_of_products_a_cycle(kind):
  """Systolic arrays of 128 or 256 squared, a power of two of them, two FLOPs each."""
  chip = CHIPS[kind]
  assert math.log2(chip.peak_flops / chip.clock) == pytest.approx(
    round(math.log2(chip.peak_flops / chip.clock)), abs=0.02
  )
  assert 0.001 < 10 * chip.link_bytes / chip.peak_flops < 0.2
