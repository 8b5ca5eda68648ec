"""How long a step takes, by the compiler's own schedule: the cycles of every instruction, and bytes over the links.

XLA's `optimal_seconds` is another estimate, and not one to trust: it takes a second off for each operation that it has
no price for. Here what has no price is counted and left out, so that the sum is a lower bound that says what it lacks.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable

from switch_jax.plan.chips import CHIPS, Chip
from switch_jax.plan.collectives import Collective, kind_of, of_instructions
from switch_jax.plan.program import Instruction, shape_bytes

# Of what is sent for n devices that each hold or get `bytes`: the part that leaves a device.
_SENT = {
  'all-to-all': lambda n: (n - 1) / n,
  'all-gather': lambda n: (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'collective-permute': lambda n: 1.0,
}
# Operations that move or name what is there already, and those that wait for what was started elsewhere.
_FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id', 'while',
  'call', 'conditional', 'opt-barrier', 'reshape', 'domain', 'add-dependency',
}  # fmt: skip
# Of the vector units in a softmax and its derivative: masks, maximum, exponential, sums, quotient.
_OPERATIONS = 16
# Scalars are computed beside the rest.
_SCALAR_BYTES = 8


@dataclasses.dataclass(frozen=True)
class Estimate:
  """The time of one step on one device.

  Attributes:
    compute_seconds: of the scheduled instructions, loops multiplied out, and of the kernels.
    kernel_seconds: the part of the kernels of Pallas, which the compiler's schedule has no price for: twice the time of
      their products at the peak (heads of 64 fill half of the matrix unit) and 16 vector operations an exponential.
    exchange_seconds: of the collectives, as if all links were busy with nothing else; nothing of it overlaps with
      computation, as the programs seen here have it.
    unpriced: how often operations run for which the compiler has no estimate, by opcode; their time is in neither.
    peak_flops: a second, of the device in bfloat16.
  """

  compute_seconds: float
  kernel_seconds: float
  exchange_seconds: float
  unpriced: dict[str, int]
  peak_flops: float

  @property
  def seconds(self) -> float:
    """Both."""
    return self.compute_seconds + self.exchange_seconds

  def share_of_peak(self, flops: float) -> float:
    """Returns what part of the device's peak so many FLOPs in the computing time are."""
    return flops / (self.compute_seconds * self.peak_flops)


def estimate(program: Iterable[Instruction], device_kind: str, num_devices: int) -> Estimate | None:
  """Adds up a program.

  Args:
    program: the instructions of the compiled step.
    device_kind: the compiler's name of the device.
    num_devices: that take part in a collective whose text does not say.

  Returns:
    None for a device whose figures are not known here.
  """
  chip = CHIPS.get(device_kind)
  if chip is None:
    return None
  outer = [one for one in program if not one.is_inner]
  unpriced: collections.Counter[str] = collections.Counter()
  for one in outer:
    if is_unpriced(one):
      unpriced[one.opcode] += one.times
  cycles = sum(one.times * (one.cycles or 0) for one in outer)
  kernels = sum(one.times * _kernel_seconds(one, chip) for one in outer)
  sent = sum(bytes_sent(collective, num_devices) for collective in of_instructions(outer))
  return Estimate(
    cycles / chip.clock + kernels, kernels, sent / chip.link_bytes, dict(sorted(unpriced.items())), chip.peak_flops
  )


def _kernel_seconds(one: Instruction, chip: Chip) -> float:
  if one.cycles is not None or one.declared_cost is None:
    return 0.0
  flops, transcendentals = one.declared_cost
  return 2 * flops / chip.peak_flops + _OPERATIONS * transcendentals / (chip.vector_lanes * chip.clock)


def bytes_sent(collective: Collective, num_devices: int) -> float:
  """Returns the bytes that leave a device for a collective, as often as it runs."""
  return collective.count * collective.bytes * _SENT[collective.kind](collective.group_size or num_devices)


def is_unpriced(one: Instruction) -> bool:
  """Whether an instruction takes time of which the compiler says nothing."""
  if one.is_inner or one.cycles is not None or one.declared_cost or kind_of(one) or one.opcode in _FREE:
    return False
  if 'custom_call_target="AllocateBuffer"' in one.arguments:
    return False
  # The end of an asynchronous operation, and a copy that was scheduled beside others.
  if one.opcode.endswith(('-done', '-update')) or one.opcode in ('copy-start', 'slice-start'):
    return False
  return shape_bytes(one.shape) > _SCALAR_BYTES


def extrapolate(few: Estimate, more: Estimate, factor: float) -> Estimate:
  """Returns the estimate of a program of the first, and `factor` times what the second has more."""
  add = lambda a, b: a + factor * (b - a)  # noqa: E731
  names = sorted(few.unpriced | more.unpriced)
  return Estimate(
    add(few.compute_seconds, more.compute_seconds),
    add(few.kernel_seconds, more.kernel_seconds),
    add(few.exchange_seconds, more.exchange_seconds),
    {name: math.ceil(add(few.unpriced.get(name, 0), more.unpriced.get(name, 0))) for name in names},
    few.peak_flops,
  )
