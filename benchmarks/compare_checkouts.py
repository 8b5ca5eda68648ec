"""Step, decoding and start of two checkouts in alternating runs, on an idle machine.

  git worktree add ../before dcb2090
  python benchmarks/compare_checkouts.py --before ../before --after .

Each ratio is after / before of two neighbouring runs; medians are printed. A start is the whole command that makes the
quickstart's first step with everything cached; one run of each is not counted.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from compare_step_time import Worker

START = (
  '--gin_file=gin/examples/quickstart.gin',
  '--gin.TRAIN_STEPS=1',
  '--gin.EVAL_STEPS=1',
  '--gin.config.OptimizerConfig.warmup_steps=1',
)


def environment(checkout: pathlib.Path) -> dict[str, str]:
  """Returns the variables with which a checkout's own package is imported."""
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(checkout)}


def serving(checkout: pathlib.Path, script: str, experts: int) -> Worker:
  """Starts a benchmark of a checkout that works when it is asked."""
  command = [sys.executable, str(checkout / 'benchmarks' / script), '--serve', '--experts', str(experts)]
  return Worker(command, environment(checkout))


def start(checkout: pathlib.Path) -> float:
  """Returns the seconds of a run of one step."""
  with tempfile.TemporaryDirectory() as folder:
    began = time.monotonic()
    command = [sys.executable, '-m', 'switch_jax.main', *START, f'--gin.MODEL_DIR={folder}/run']
    subprocess.run(command, cwd=checkout, env=environment(checkout), check=True, capture_output=True)
    return time.monotonic() - began


def show(name: str, pairs: list[tuple[float, float]]) -> None:
  """Prints medians of `(before, after)` and of their ratios."""
  ratios = [after / before for before, after in pairs]
  before, after, ratio = (statistics.median(values) for values in (*zip(*pairs, strict=True), ratios))
  print(f'{name:<18}{before:>9.3f}{after:>9.3f}{ratio:>8.3f}{min(ratios):>8.3f}{max(ratios):>8.3f}', flush=True)


def main() -> None:
  """Times both and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--before', type=pathlib.Path, required=True, help='a checkout')
  parser.add_argument('--after', type=pathlib.Path, required=True, help='another')
  parser.add_argument('--runs', type=int, default=15)
  parser.add_argument('--starts', type=int, default=5)
  arguments = parser.parse_args()
  checkouts = [arguments.before.resolve(), arguments.after.resolve()]
  print(f'{"":<18}{"before s":>9}{"after s":>9}{"ratio":>8}{"min":>8}{"max":>8}')
  for script, name, experts in (
    ('step_time.py', 'step', 16),
    ('step_time.py', 'step', 64),
    ('decoding_speed.py', 'decoding', 16),
  ):
    workers = [serving(checkout, script, experts) for checkout in checkouts]
    show(f'{name}, {experts} experts', [tuple(worker.step() for worker in workers) for _ in range(arguments.runs)])
    for worker in workers:
      worker.close()
  starts = [tuple(start(checkout) for checkout in checkouts) for _ in range(arguments.starts + 1)]
  show('start', starts[1:])


if __name__ == '__main__':
  main()
