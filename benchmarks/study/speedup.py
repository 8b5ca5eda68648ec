"""How many steps of the dense model the steps of another are worth, and how that grows with the length of training."""

import pathlib
import statistics

import measures

from switch_jax.folders.model_dir import ModelDir


def worth(dense: list[tuple[int, float]], other: list[tuple[int, float]], step: int) -> float | None:
  """Returns how many times more steps the dense model needs for the other's loss at a step; None if it never has it."""
  steps = measures.steps_to_reach(dense, dict(other)[step])
  return steps / step if steps else None


def pairs(folder: pathlib.Path, point: str) -> list[tuple[list[tuple[int, float]], list[tuple[int, float]]]]:
  """Returns the curves of the dense model and of a point for each seed that has finished both."""
  found = []
  for path in sorted(folder.glob(f'{point},RANDOM_SEED=*')):
    dense = folder / path.name.replace(point, 'dense', 1)
    if all(ModelDir(one).finished.exists() for one in (path, dense)):
      found.append((measures.curve(dense), measures.curve(path)))
  return found


def table(folder: pathlib.Path, points: list[str]) -> str:
  """Returns, by steps of each point, how many times more the dense model needs for the same loss, as Markdown."""
  curves = {point: found for point in points if (found := pairs(folder, point))}
  every = sorted({step for found in curves.values() for _, curve in found for step, _ in curve if step})
  steps = [step for step in every if not step % 500] or every[-1:]
  lines = [f'| after steps | {" | ".join(f"{step:,}" for step in steps)} |', '| --- ' * (len(steps) + 1) + '|']
  for point, found in curves.items():
    cells = []
    for step in steps:
      reached = [(worth(dense, curve, step), dense[-1][0] / step) for dense, curve in found if step in dict(curve)]
      # A loss that the dense model has not reached when it stops counts as its last step: a lower bound.
      ratios = [ratio or bound for ratio, bound in reached]
      over = 'over ' if any(ratio is None for ratio, _ in reached) else ''
      spread = f' ({min(ratios):.2f} to {over}{max(ratios):.2f})' if ratios and min(ratios) < max(ratios) else ''
      cells.append(f'{over}{statistics.fmean(ratios):.2f}{spread}' if ratios else '')
    lines.append(f'| {point.replace("_", " ")} | {" | ".join(cells)} |')
  return '\n'.join(lines)
