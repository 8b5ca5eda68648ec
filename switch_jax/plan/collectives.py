"""What a compiled program sends between devices."""

import dataclasses
import re
from collections.abc import Iterable

from switch_jax.plan.program import Instruction, instructions, shape_bytes

KINDS = ('all-to-all', 'all-gather', 'reduce-scatter', 'all-reduce', 'collective-permute')
_SAME = {'ragged-all-gather': 'all-gather', 'ragged-all-to-all': 'all-to-all'}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction of a program.

  Attributes:
    kind: one of `KINDS`.
    shape: XLA's text of the result's shape, for people: `bf16[128,40,768]`.
    bytes: of the larger of operand and result, on one core; of a ragged all-to-all those of the whole result, which
      are more than what moves where slots stay empty.
    count: how often it runs in a step.
    name: of the operation in the JAX program, where XLA kept it.
    group_size: how many devices take part; None where the text does not say.
  """

  kind: str
  shape: str
  bytes: int
  count: int
  name: str
  group_size: int | None = None


def kind_of(instruction: Instruction) -> str | None:
  """Returns the kind of a collective instruction, or None; an asynchronous one counts at its start."""
  if instruction.opcode.endswith('-done'):
    return None
  opcode = instruction.opcode.removesuffix('-start')
  if opcode == 'fusion' and 'all-reduce-scatter' in instruction.name:
    return 'reduce-scatter'  # TPUs fuse an all-reduce with the slice that is kept of it.
  opcode = _SAME.get(opcode, opcode)
  return opcode if opcode in KINDS else None


def collectives(text: str, loop_turns: int | None = None) -> list[Collective]:
  """Returns the collectives of a compiled program; the arguments are those of `program.instructions`."""
  return list(of_instructions(instructions(text, loop_turns)))


def of_instructions(program: Iterable[Instruction]) -> Iterable[Collective]:
  """Yields the collectives among the instructions of a program."""
  for one in program:
    if kind := kind_of(one):
      # An asynchronous start returns operand and result together.
      parts = [shape_bytes(shape) for shape in one.shapes]
      # A ragged exchange is given the array that it writes to as well; it counts as if that were filled.
      is_ragged = one.opcode.startswith('ragged-all-to-all')
      operands = 0 if is_ragged else shape_bytes(one.arguments.partition(')')[0])
      size = max(max(parts, default=0) if one.opcode.endswith('-start') else sum(parts), operands)
      yield Collective(kind, one.shape.partition('{')[0], size, one.times, one.op_name, _group_size(one.arguments))


def _group_size(arguments: str) -> int | None:
  if listed := re.search(r'\breplica_groups=\{\{([\d,]+)\}', arguments):
    return len(listed[1].split(','))
  if counted := re.search(r'\breplica_groups=\[\d+,(\d+)\]', arguments):
    return int(counted[1])
  return None


def summary(found: list[Collective]) -> dict[str, dict[str, int]]:
  """Returns count and bytes of a step by kind, both for one core."""
  total: dict[str, dict[str, int]] = {}
  for kind in KINDS:
    same = [c for c in found if c.kind == kind]
    if same:
      total[kind] = {'count': sum(c.count for c in same), 'bytes': sum(c.count * c.bytes for c in same)}
  return total
