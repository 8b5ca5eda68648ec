"""What loss curves say: after how many steps a loss is reached, and how many steps of another model that saves."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

# Steps and held-out losses in nats a target token, by rising step.
Curve = Sequence[tuple[int, float]]
# `first`: where a curve is at a loss for the first time; `last`: from where on it is never above it again.
Crossing = Literal['first', 'last']


def steps_to_reach(curve: Curve, loss: float, crossing: Crossing = 'first') -> float | None:
  """Returns after how many steps a curve is at a loss, between evaluations on a straight line; None if never.

  Every speed-up of these studies is the ratio of two such numbers. A curve that rises again crosses a loss several
  times: the first crossing is what an early stop would have, the last one what holds for good.
  """
  if crossing == 'last':
    last_above = max((i for i, (_, value) in enumerate(curve) if value > loss), default=-1)
    curve = curve[max(last_above, 0) :]
  for (before, high), (step, low) in itertools.pairwise(curve):
    if low <= loss:
      return step if high <= loss else before + (step - before) * (high - loss) / (high - low)
  return None


def speed_up(slow: Curve, fast: Curve, crossing: Crossing = 'first') -> float:
  """Returns how many times fewer steps `fast` needs for the last loss of `slow`; below 1 if it never gets there.

  Then it is the part of its steps after which `slow` is at the last loss of `fast`.
  """
  if (steps := steps_to_reach(fast, slow[-1][1], crossing)) is not None:
    return slow[-1][0] / max(steps, 1.0)
  return (steps_to_reach(slow, fast[-1][1], crossing) or 0.0) / fast[-1][0]


def lowest(curve: Curve) -> tuple[int, float]:
  """Returns the step and the value of a curve's lowest loss, the first of equal ones."""
  return min(curve, key=lambda point: point[1])


def shared_steps(curves: Iterable[Curve]) -> list[int]:
  """Returns the steps at which all of these curves have a loss, by rising step."""
  return sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))


def saved(slow: Curve, fast: Curve) -> list[tuple[int, float]]:
  """Returns how many times fewer steps `fast` needs for the lowest loss that `slow` has had, by the steps of `slow`.

  The steps that `slow` needed are those to where it had that loss first, which may lie behind it: a curve that rises
  again saves nothing of what it had. As far as `fast` gets.
  """
  found, best = [], (0, math.inf)
  for step, loss in slow:
    best = min(best, (step, loss), key=lambda point: point[1])
    reached = steps_to_reach(fast, best[1])
    if reached is None:
      break
    if reached:
      found.append((step, best[0] / reached))
  return found
