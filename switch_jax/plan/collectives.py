"""What a compiled program sends between devices, read from its text.

XLA prints a program as named computations; a `while` names the computations of its condition and its body. A
collective in a body runs as often as the loop turns, so every computation is weighed with the product of the trip
counts around it.
"""

import dataclasses
import re

KINDS = ('all-to-all', 'all-gather', 'reduce-scatter', 'all-reduce', 'collective-permute')

_BYTES = {'pred': 1, 's4': 1, 'u4': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2}
_BYTES |= {'f32': 4, 's32': 4, 'u32': 4, 'f64': 8, 's64': 8, 'u64': 8}

_HEADER = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_CALLED = re.compile(r'\b(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')
_CONSTANT = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)')
_KNOWN_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction of a program.

  Attributes:
    kind: one of `KINDS`.
    shape: XLA's text of the result's shape, for people: `bf16[128,40,768]`.
    bytes: of the larger of operand and result, on one core.
    count: how often it runs in a step.
    name: of the operation in the JAX program, where XLA kept it.
  """

  kind: str
  shape: str
  bytes: int
  count: int
  name: str


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


def computations(text: str) -> tuple[dict[str, list[str]], str]:
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


def trip_count(line: str, condition: list[str]) -> int | None:
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


def _kind(opcode: str, line: str) -> str | None:
  """Returns the kind of a collective instruction; an asynchronous one counts at its start."""
  if opcode.endswith('-done'):
    return None
  opcode = opcode.removesuffix('-start')
  if opcode == 'fusion' and 'all-reduce-scatter' in line.partition(' = ')[0]:
    return 'reduce-scatter'  # TPUs fuse an all-reduce with the slice that is kept of it.
  return 'all-gather' if opcode == 'ragged-all-gather' else opcode if opcode in KINDS else None


def collectives(text: str, loop_turns: int | None = None) -> list[Collective]:
  """Returns the collectives of a compiled program.

  Args:
    text: `compiled.as_text()`.
    loop_turns: turns of a loop whose condition does not tell; None counts its body once.
  """
  bodies, entry = computations(text)
  found: list[Collective] = []

  def visit(name: str, times: int) -> None:
    for line in bodies.get(name, ()):
      match = _INSTRUCTION.match(line)
      if not match:
        continue
      _, shape, opcode, rest = match.groups()
      if kind := _kind(opcode, line):
        # An asynchronous start returns operand and result together.
        parts = [shape_bytes(part.group(0)) for part in _SHAPE.finditer(shape)]
        operands = shape_bytes(rest.partition(')')[0])
        size = max(max(parts, default=0) if opcode.endswith('-start') else sum(parts), operands)
        jax_name = re.search(r'op_name="([^"]*)"', line)
        found.append(Collective(kind, shape.partition('{')[0], size, times, jax_name[1] if jax_name else ''))
        continue
      called = _calls(line)
      if opcode == 'while':
        condition = re.search(r'\bcondition=%?([\w.\-]+)', line)
        turns = trip_count(line, bodies.get(condition[1], [])) if condition else None
        times_inside = times * (turns or loop_turns or 1)
      else:
        times_inside = times
      for other in called:
        visit(other, times_inside)

  visit(entry, 1)
  return found


def summary(found: list[Collective]) -> dict[str, dict[str, int]]:
  """Returns count and bytes of a step by kind, both for one core."""
  total: dict[str, dict[str, int]] = {}
  for kind in KINDS:
    same = [c for c in found if c.kind == kind]
    if same:
      total[kind] = {'count': sum(c.count for c in same), 'bytes': sum(c.count * c.bytes for c in same)}
  return total
