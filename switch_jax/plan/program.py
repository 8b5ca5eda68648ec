"""A compiled program read from XLA's text: its instructions, each with the number of times it runs in a step.

XLA prints a program as named computations; a `while` names the computations of its condition and its body. What is in a
body runs as often as the loop turns, so every instruction is weighed with the product of the trip counts around it.
"""

import dataclasses
import re
from collections.abc import Iterator

_BYTES = {'pred': 1, 's4': 1, 'u4': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2}
_BYTES |= {'f32': 4, 's32': 4, 'u32': 4, 'f64': 8, 's64': 8, 'u64': 8}

_HEADER = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_CALLED = re.compile(r'\b(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')
_CONSTANT = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)')
_KNOWN_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_DECLARED = re.compile(r'"cost_estimate":\{"flops":"(\d+)","transcendentals":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction of a program.

  Attributes:
    name: XLA's.
    shape: XLA's text of the result's shape with its layout, `bf16[8,128]{1,0}`, or of a tuple of such.
    opcode: `fusion`, `all-to-all`, ...
    arguments: the rest of the line: operands and attributes.
    times: how often it runs in a step.
    is_inner: whether it is part of another instruction that has a price of its own: a fusion, a reduction's function.
  """

  name: str
  shape: str
  opcode: str
  arguments: str
  times: int
  is_inner: bool

  @property
  def cycles(self) -> int | None:
    """What the compiler's scheduler takes it to cost, once; None where it has no estimate."""
    found = _CYCLES.search(self.arguments)
    return int(found[1]) if found else None

  @property
  def declared_cost(self) -> tuple[int, int] | None:
    """FLOPs and transcendentals that a kernel of Pallas says it has; None where nothing is said."""
    found = _DECLARED.search(self.arguments)
    return (int(found[1]), int(found[2])) if found else None

  @property
  def op_name(self) -> str:
    """The operation in the JAX program, where XLA kept it."""
    found = _OP_NAME.search(self.arguments)
    return found[1] if found else ''

  @property
  def shapes(self) -> list[str]:
    """The arrays of the result."""
    return [match.group(0) for match in _SHAPE.finditer(self.shape)]


def shape_bytes(text: str) -> int:
  """Returns the bytes of all array shapes in a piece of XLA's text, `f32[8,128]` or a tuple of such."""
  total = 0
  for dtype, dims in _SHAPE.findall(text):
    if dtype in _BYTES:
      size = _BYTES[dtype]
      for dim in dims.split(','):
        size *= int(dim) if dim else 1
      total += size
  return total


def instructions(text: str, loop_turns: int | None = None) -> Iterator[Instruction]:
  """Yields the instructions of a compiled program in their order, those in loops and calls where these stand.

  Args:
    text: `compiled.as_text()`.
    loop_turns: turns of a loop whose condition does not tell; None counts its body once.
  """
  bodies, entry = _computations(text)

  def visit(name: str, times: int, is_inner: bool) -> Iterator[Instruction]:
    for line in bodies.get(name, ()):
      match = _INSTRUCTION.match(line)
      if not match:
        continue
      found = Instruction(*match.groups(), times, is_inner)
      yield found
      inside = times
      if found.opcode == 'while':
        condition = re.search(r'\bcondition=%?([\w.\-]+)', line)
        turns = _trip_count(line, bodies.get(condition[1], [])) if condition else None
        inside *= turns or loop_turns or 1
      # The computation of an asynchronous instruction stands apart where that has no price.
      follows = found.opcode in ('while', 'call', 'conditional') or (found.opcode == 'async-start' and not found.cycles)
      for other in _calls(line):
        yield from visit(other, inside, is_inner or not follows)

  yield from visit(entry, 1, False)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Returns the instructions of every computation of a program by its name, and the name of the entry."""
  found: dict[str, list[str]] = {}
  entry, current = '', None
  for line in text.splitlines():
    if match := _HEADER.match(line):
      current = found.setdefault(match[1], [])
      if line.startswith('ENTRY'):
        entry = match[1]
    elif line.startswith('}'):
      current = None
    elif current is not None:
      current.append(line)
  return found, entry


def _trip_count(line: str, condition: list[str]) -> int | None:
  """Returns how often a `while` turns: what XLA has noted, else the only constant its condition compares with."""
  if known := _KNOWN_TRIP_COUNT.search(line):
    return int(known[1])
  constants = {match[1]: int(match[2]) for one in condition if (match := _CONSTANT.match(one))}
  compared = {
    constants[name]
    for one in condition
    if ' compare(' in one or ' fusion(' in one
    for name in re.findall(r'%([\w.\-]+)', one)
    if name in constants
  }
  return compared.pop() if len(compared) == 1 else None


def _calls(line: str) -> list[str]:
  names = _CALLED.findall(line)
  for branches in _BRANCHES.findall(line):
    names += [name.strip().lstrip('%') for name in branches.split(',')]
  return names
