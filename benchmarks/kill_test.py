"""Kills a run ten times with SIGKILL and compares its whole loss curve, bit by bit, with that of a run left alone.

  python benchmarks/kill_test.py

The run is the quickstart's model with a line of metrics for every step, a checkpoint every 10 and an evaluation every
20. Kills come at random moments of three kinds in turn: some time after a step (in the middle of another one), while a
checkpoint is being written in the background, and during an evaluation. Exit status 0 if every step stands once in
both `metrics.jsonl` and all losses, gradient norms and evaluations are equal.
"""

import argparse
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from runs import ROOT

from switch_jax.folders.model_dir import ModelDir

CHECKPOINT_PERIOD, EVAL_PERIOD = 10, 20
# What must be equal in every bit; the other numbers of a line are speeds and memory.
COMPARED = ('loss', 'cross_ent_loss', 'grad_norm', 'fraction_dropped', 'accuracy')


def command(folder: pathlib.Path, steps: int) -> list[str]:
  """Returns the command of the run."""
  bindings = {
    'MODEL_DIR': folder,
    'TRAIN_STEPS': steps,
    'LOG_PERIOD': 1,
    'CHECKPOINT_PERIOD': CHECKPOINT_PERIOD,
    'EVAL_PERIOD': EVAL_PERIOD,
  }
  gin = [f'--gin.{name}={value}' for name, value in bindings.items()]
  return [sys.executable, '-m', 'switch_jax.main', '--gin_file=gin/examples/quickstart.gin', *gin]


def lines(folder: pathlib.Path, kind: str) -> list[dict]:
  """Returns the whole lines of `metrics.jsonl` of `train` or of the evaluation."""
  place = ModelDir(folder)
  return place.read_train() if kind == 'train' else [line for t in place.tasks() for line in place.read_held_out(t)]


def last_step(folder: pathlib.Path) -> int:
  """Returns the last step that stands in the metrics."""
  return max((line['step'] for line in lines(folder, 'train')), default=0)


def is_saving(folder: pathlib.Path) -> bool:
  """Whether a checkpoint is being written."""
  return any('.orbax-checkpoint-tmp' in path.name for path in pathlib.Path(ModelDir(folder).checkpoints).glob('*'))


def is_evaluating(folder: pathlib.Path) -> bool:
  """Whether the last step is to be evaluated and has not been."""
  step = last_step(folder)
  return step > 0 and step % EVAL_PERIOD == 0 and lines(folder, 'eval')[-1]['step'] < step


def run_until_killed(folder: pathlib.Path, steps: int, kind: str, chance: random.Random) -> str:
  """Runs until the moment of a kind, kills, and returns what was going on."""
  process = subprocess.Popen(command(folder, steps), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
  begin = last_step(folder)
  target = begin + chance.randint(1, CHECKPOINT_PERIOD + 2)
  while process.poll() is None:
    step = last_step(folder)
    ready = {
      'during a step': step >= target and step > begin,
      'while saving': step > begin and is_saving(folder),
      'while evaluating': step > begin and is_evaluating(folder),
    }
    if ready[kind]:
      time.sleep(chance.uniform(0.0, 0.15))
      os.kill(process.pid, signal.SIGKILL)
      process.wait()
      return f'{kind}, after step {last_step(folder)}; saving: {is_saving(folder)}'
    time.sleep(0.002)
  raise SystemExit(f'the run ended with {process.returncode} by itself:\n{process.stderr.read().decode()}')


def differences(alone: pathlib.Path, killed: pathlib.Path, steps: int) -> list[str]:
  """Returns in words what differs between two finished runs."""
  found = []
  for kind in ('train', 'eval'):
    first, second = lines(alone, kind), lines(killed, kind)
    if [line['step'] for line in first] != [line['step'] for line in second]:
      found.append(f'{kind}: the steps differ: {[line["step"] for line in second]}')
      continue
    if kind == 'train' and [line['step'] for line in second] != list(range(1, steps + 1)):
      found.append('train: not every step stands once')
    names = COMPARED if kind == 'train' else [name for name in first[0] if name != 'step']
    for a, b in zip(first, second, strict=True):
      found += [f'{kind}: step {a["step"]}: {n} {a[n]} and {b[n]}' for n in names if repr(a.get(n)) != repr(b.get(n))]
  return found


def main() -> None:
  """Makes the two runs and compares them."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--kills', type=int, default=10)
  parser.add_argument('--seed', type=int, default=0)
  arguments = parser.parse_args()
  chance, folder = random.Random(arguments.seed), pathlib.Path(tempfile.mkdtemp(prefix='kill_test_'))
  alone, killed = folder / 'alone', folder / 'killed'
  try:
    subprocess.run(command(alone, arguments.steps), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    print(f'alone: {arguments.steps} steps', flush=True)
    kinds = ('during a step', 'while saving', 'while evaluating')
    for kill in range(arguments.kills):
      print(f'kill {kill + 1}:', run_until_killed(killed, arguments.steps, kinds[kill % 3], chance), flush=True)
    subprocess.run(command(killed, arguments.steps), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = differences(alone, killed, arguments.steps)
    evaluations = len(lines(killed, 'eval'))
    print(*(found or [f'{arguments.steps} steps and {evaluations} evaluations are equal in every bit']), sep='\n')
    sys.exit(1 if found else 0)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
  main()
