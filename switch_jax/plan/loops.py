"""The FLOPs of a step whose layers are scanned. XLA's cost analysis counts the body of a loop once."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from switch_jax.config import ModelConfig, RunConfig
from switch_jax.model.transformer import block_length
from switch_jax.parallel import Layout
from switch_jax.plan import flops


def turns(model: ModelConfig) -> dict[str, int]:
  """Returns how often each stack's scan over layers turns; stacks without a loop are missing."""
  if not model.scan_layers:
    return {}
  counts = {}
  for stack in model.stacks:
    blocks = model.num_layers(stack) // block_length(model, stack)
    # XLA unrolls a loop of one turn, as JAX does where all blocks are in one turn.
    if blocks > model.scan_unroll:
      counts[stack] = blocks // model.scan_unroll
  return counts


def _read(compiled: Any) -> float | None:
  return (compiled.cost_analysis() or {}).get('flops')


def step_flops(
  run: RunConfig,
  layout: Layout,
  compiled: Any,
  compile_step: Callable[[RunConfig, Layout], tuple[Any, float]],
  note: Callable[[str], None],
) -> float | None:
  """Returns the FLOPs of a core in the whole step; None where the compiler does not say.

  The step is compiled once more with u blocks in each turn of the scans, everything else being equal: what that adds
  is u - 1 bodies, and all turns but the first are added to the cost of one. u is the smallest divisor of the turns
  that leaves a loop: XLA would merge the recomputation of remat away in a scan without one. Where there is none, the
  layers are compiled one by one instead. Of stacks with different numbers of turns only the sum of the bodies is
  known; it is shared out in proportion to their products with parameters.

  Args:
    run: the run.
    layout: over the topology's devices.
    compiled: the step of that run.
    compile_step: compiles a changed run.
    note: is told what is being compiled.
  """
  once, counts = _read(compiled), turns(run.model)
  if not counts or once is None:
    return once
  common = math.gcd(*counts.values())
  unroll = next((u for u in range(2, common + 1) if common % u == 0), 1)
  if unroll == 1 or unroll in counts.values():
    note('compiling again with layers one by one, to count FLOPs')
    model = dataclasses.replace(run.model, scan_layers=False)
    return _read(compile_step(dataclasses.replace(run, model=model), layout)[0])
  note(f'compiling again with {unroll} blocks in a turn of the scan, to count FLOPs')
  model = dataclasses.replace(run.model, scan_unroll=unroll * run.model.scan_unroll)
  more = _read(compile_step(dataclasses.replace(run, model=model), layout)[0])
  factor = _mean_turns(run, layout, counts) - 1
  return once + factor * ((more or once) - once) / (unroll - 1)


def _mean_turns(run: RunConfig, layout: Layout, counts: dict[str, int]) -> float:
  """Returns the turns of the stacks, weighted by what one turn of each costs."""
  if len(set(counts.values())) == 1:
    return next(iter(counts.values()))
  forward = flops.forward_flops(run, layout)
  bodies = {stack: forward[stack].layers / count for stack, count in counts.items()}
  return sum(bodies[stack] * count for stack, count in counts.items()) / sum(bodies.values())
