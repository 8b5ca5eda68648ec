"""Where the time of a training step goes on a CPU: by part, beside what each part needs at least on this machine.

  python benchmarks/step_profile.py --experts 16

Traces a few steps of `step_time.py` and shares every moment out among the operations that run in it, so that the parts
and `nothing runs` add up to the step. An operation that uses several cores is one here; where two run side by side each
gets half. `at least` is a part's products at the rate of a large product, or what its other operations read and write
at the rate of a large copy; operations inside loops count by their products only, since what they read is in the
caches. The optimizer needs to read gradients and parameters and to write parameters, once. The profiler itself makes a
step some percent slower.
"""

import argparse
import collections
import glob
import math
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
from machine_rates import measure
from step_time import Trainer

from switch_jax import launch
from switch_jax.plan.program import instructions, shape_bytes

# The first pattern that is found in the name of an operation gives its part.
PARTS = (
  ("attention's core", re.compile(r'attention/(while|closed_call)|attention.*checkpoint')),
  ('projections', re.compile(r'attention/.*(_project|/out/|attention/out)')),
  ('router', re.compile(r'/router/')),
  ('dense feed-forward', re.compile(r'mlp/(wi|wo|wi_\d)/')),
  ('experts and dispatch', re.compile(r'layers_\d+/mlp')),
  ('norms', re.compile(r'norm')),
  ('embedding, logits, residuals', re.compile(r'Transformer')),
  ('optimizer, loss and metrics', re.compile('')),
)


class Operation(NamedTuple):
  """Attributes: the part of the step; FLOPs of its products; bytes it reads and writes, 0 where it is in the caches."""

  part: str
  flops: int
  bytes: int


def operations(text: str) -> dict[str, Operation]:
  """Returns what is known of every instruction of a compiled program by its name; a fusion has the products in it."""
  shapes, found, outer = {}, {}, ''
  for one in instructions(text):
    shapes[one.name] = one.shape
    operands = re.findall(r'%([\w.\-]+)', one.arguments.split('), ')[0])
    if not one.is_inner:
      outer = one.name
      part = next(part for part, pattern in PARTS if pattern.search(one.op_name))
      in_loop = part == PARTS[0][0] or '/while/' in one.op_name
      moved = 0 if in_loop else shape_bytes(one.shape) + sum(shape_bytes(shapes.get(x, '')) for x in operands)
      found[outer] = Operation(part, 0, moved)
    if one.opcode == 'dot':
      left = re.search(r'\[([\d,]*)\]', shapes[operands[0]])[1].split(',')
      contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', one.arguments)[1].split(',')
      flops = 2 * shape_bytes(one.shape) // 4 * math.prod(int(left[int(axis)]) for axis in contracted)
      found[outer] = found[outer]._replace(flops=found[outer].flops + flops)
  return found


Span = tuple[int, int, str]


def innermost(events: Iterable[Span]) -> Iterator[Span]:
  """Yields the pieces of one thread's nested events (begin, end, name), each with the name that is innermost in it."""
  stack: list[tuple[int, str]] = []
  position = 0
  for begin, end, name in sorted(events, key=lambda event: (event[0], -event[1])):
    while stack and stack[-1][0] <= begin:
      yield position, stack[-1][0], stack[-1][1]
      position = max(position, stack.pop()[0])
    if stack:
      yield position, begin, stack[-1][1]
    position = begin
    stack.append((end, name))
  while stack:
    yield position, stack[-1][0], stack[-1][1]
    position = max(position, stack.pop()[0])


def shares(spans: Iterable[Span]) -> collections.Counter[str]:
  """Returns the time of each name, where every moment is shared by what runs in it (not by a loop that waits)."""
  edges = sorted((at, step, name) for begin, end, name in spans for at, step in ((begin, 1), (end, -1)) if end > begin)
  running: collections.Counter[str] = collections.Counter()
  result: collections.Counter[str] = collections.Counter()
  last = 0
  for at, step, name in edges:
    active = [name for name, count in running.items() for _ in range(count) if not name.startswith('while')]
    for one in active:
      result[one] += (at - last) / len(active)
    running[name] += step
    last = at
  return result


def trace(trainer: Trainer, steps: int) -> list[list[Span]]:
  """Returns the operations of some steps as spans in nanoseconds, by thread."""
  options = jax.profiler.ProfileOptions()
  options.host_tracer_level, options.python_tracer_level = 3, 0
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, profiler_options=options):
      for _ in range(steps):
        trainer.run()
    (path,) = glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)
    data = jax.profiler.ProfileData.from_file(path)
  threads = [line for plane in data.planes for line in plane.lines]
  return [
    [
      (event.start_ns, event.start_ns + event.duration_ns, event.name)
      for event in thread.events
      if not event.name.startswith('end:') and any(key == 'hlo_op' for key, _ in event.stats)
    ]
    for thread in threads
  ]


def main() -> None:
  """Traces and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--experts', type=int, default=16)
  parser.add_argument('--steps', type=int, default=5)
  parser.add_argument('--capacity_factor', type=float, default=1.25)
  parser.add_argument('--exploration', default='input_jitter')
  parser.add_argument('--dtype', default='float32')
  arguments = parser.parse_args()
  launch.restart_with_huge_pages()
  launch.keep_freed_memory()
  rates = measure()
  trainer = Trainer(arguments.experts, arguments)
  known = operations(trainer.step.lower(trainer.state, trainer.batch).compile().as_text())
  for _ in range(8):  # memory grows in the first few
    trainer.run(count=False)
  threads = trace(trainer, arguments.steps)
  counts = collections.Counter(name for thread in threads for *_, name in thread)
  spent = shares(span for thread in threads for span in innermost(thread))
  time_of, flops_of, least = collections.Counter(), collections.Counter(), collections.Counter()
  for name, one in known.items():
    time_of[one.part] += spent[name] / arguments.steps / 1e6
    flops_of[one.part] += one.flops * counts[name] / arguments.steps
    seconds = one.flops / rates.flops if one.flops else one.bytes / rates.bytes
    least[one.part] += 1e3 * seconds * counts[name] / arguments.steps * (not name.startswith('while'))
  parameters = sum(x.nbytes for x in jax.tree.leaves(trainer.state.params))
  least[PARTS[-1][0]] = 1e3 * 3 * parameters / rates.bytes
  step = 1e3 * sum(trainer.seconds) / len(trainer.seconds)
  print(f'{rates}; a step of {step:.0f} ms')
  print(f'{"part":<32}{"ms":>8}{"share":>8}{"GFLOP":>8}{"at least ms":>13}{"times":>7}')
  for part, milliseconds in time_of.most_common():
    ratio = milliseconds / least[part] if least[part] else math.nan
    giga = flops_of[part] / 1e9
    print(f'{part:<32}{milliseconds:8.1f}{milliseconds / step:8.1%}{giga:8.1f}{least[part]:13.1f}{ratio:7.1f}')
  idle = step - sum(time_of.values())
  print(f'{"nothing runs":<32}{idle:8.1f}{idle / step:8.1%}')
  print(f'{"sum":<32}{step:8.1f}{1:8.1%}{sum(flops_of.values()) / 1e9:8.1f}{sum(least.values()):13.1f}')


if __name__ == '__main__':
  sys.exit(main())
