"""Kills a run with SIGKILL, many times, and compares its whole curves, bit by bit, with those of a run left alone.

  python benchmarks/kill_test.py --kills=100
  python benchmarks/kill_test.py --kills=100 --bucket

The run is the quickstart's model with a line of metrics for every step, a checkpoint every 10 and an evaluation every
20; with `--bucket` on an object store, a server on loopback (`tests/object_store`; needs `unshare -m`). Kills come at
random moments of four kinds in turn: in the middle of a step, while a checkpoint is being written, during an
evaluation, and at any time from the start of the process on. Exit status 0 if every step stands once in both
`metrics.jsonl`, all losses, gradient norms and evaluations are equal, no run had to wait for the claim of the one
before it, and what lies in the folder in the end is what lies in the other's: no leftovers, no claim.
"""

import argparse
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import time

from places import InBucket, Local, open_place

from switch_jax.folders.model_dir import COMMITTED

CHECKPOINT_PERIOD, EVAL_PERIOD = 10, 20
# What must be equal in every bit; the other numbers of a line are speeds and memory.
COMPARED = ('loss', 'cross_ent_loss', 'grad_norm', 'fraction_dropped', 'accuracy')
KINDS = ('during a step', 'while saving', 'while evaluating', 'at any time')
# Of names that differ from run to run: Orbax's and TensorBoard's.
DATA_FILE, EVENTS = re.compile(r'/d/[0-9a-f]{32}$'), re.compile(r'/events\.out\.tfevents\.[^/]+$')


def command(place: Local, run: str, steps: int) -> list[str]:
  """Returns the command of a run, what follows `python`."""
  bindings = {
    'MODEL_DIR': f'{place.root}/{run}',
    'TRAIN_STEPS': steps,
    'LOG_PERIOD': 1,
    'CHECKPOINT_PERIOD': CHECKPOINT_PERIOD,
    'EVAL_PERIOD': EVAL_PERIOD,
    'EVAL_STEPS': 2,
    'BATCH_SIZE': 8,
  }
  gin = [f'--gin.{name}={value}' for name, value in bindings.items()]
  return ['-m', 'switch_jax.main', '--gin_file=gin/examples/quickstart.gin', *gin]


def lines(place: Local, run: str, kind: str) -> list[dict]:
  """Returns the whole lines of `metrics.jsonl` of `train` or of the evaluation."""
  folder = place.open(run)
  return folder.read_train() if kind == 'train' else [line for t in folder.tasks() for line in folder.read_held_out(t)]


def last_step(place: Local, run: str) -> int:
  """Returns the last step that stands in the metrics."""
  return max((line['step'] for line in lines(place, run, 'train')), default=0)


def is_saving(place: Local, run: str) -> bool:
  """Whether a checkpoint is being written: in a folder of another name, or one in which the last file is missing."""
  steps: dict[str, set[str]] = {}
  for name in place.files(run):
    if name.startswith('checkpoints/'):
      steps.setdefault(name.split('/')[1], set()).add('/'.join(name.split('/')[2:]))
  remote = isinstance(place, InBucket)
  return any('.orbax-checkpoint-tmp' in step or (remote and COMMITTED not in files) for step, files in steps.items())


def is_evaluating(place: Local, run: str) -> bool:
  """Whether the last step is to be evaluated and has not been."""
  step = last_step(place, run)
  evaluated = max((line['step'] for line in lines(place, run, 'eval')), default=-1)
  return step > 0 and step % EVAL_PERIOD == 0 and evaluated < step


def run_until_killed(
  place: Local, arguments: list[str], log: pathlib.Path, kind: str, chance: random.Random
) -> str | None:
  """Runs until the moment of a kind, kills, and returns what was going on; None if the run came to its end."""
  began, begin = time.monotonic(), last_step(place, 'killed')
  target, seconds = begin + chance.randint(1, CHECKPOINT_PERIOD + 2), chance.uniform(0, 25)
  with log.open('a') as output:
    process = place.start(arguments, output)
  while process.poll() is None:
    saving, step = is_saving(place, 'killed'), last_step(place, 'killed')
    ready = {
      'during a step': step >= target,
      'while saving': step > begin and saving,
      'while evaluating': step > begin and is_evaluating(place, 'killed'),
      'at any time': time.monotonic() >= began + seconds or step >= begin + EVAL_PERIOD,
    }
    if ready[kind]:
      time.sleep(chance.uniform(0.0, 0.15))
      os.kill(process.pid, signal.SIGKILL)
      process.wait()
      return f'{kind}, {time.monotonic() - began:.0f} s after its start, after step {step}; saving: {saving}'
    time.sleep(0.01)
  if process.returncode:
    raise SystemExit(f'the run ended with {process.returncode} by itself:\n{log.read_text()}')
  return None


def differences(place: Local, steps: int) -> list[str]:
  """Returns in words what differs between the two finished runs."""
  found = []
  for kind in ('train', 'eval'):
    first, second = (lines(place, run, kind) for run in ('alone', 'killed'))
    if [line['step'] for line in first] != [line['step'] for line in second]:
      found.append(f'{kind}: the steps differ: {[line["step"] for line in second]}')
      continue
    if kind == 'train' and [line['step'] for line in second] != list(range(1, steps + 1)):
      found.append('train: not every step stands once')
    names = COMPARED if kind == 'train' else [name for name in first[0] if name != 'step']
    for a, b in zip(first, second, strict=True):
      found += [f'{kind}: step {a["step"]}: {n} {a[n]} and {b[n]}' for n in names if repr(a.get(n)) != repr(b.get(n))]
  # Each restart has an event file of its own, and Orbax cuts its data into more or fewer of them.
  for list_names in (place.files, place.folders):
    alone, killed = (
      {EVENTS.sub('/events', DATA_FILE.sub('/d/*', n)) for n in list_names(r)} for r in ('alone', 'killed')
    )
    found += [f'left behind: {name}' for name in sorted(killed - alone)]
    found += [f'missing: {name}' for name in sorted(alone - killed)]
  return found


def main() -> None:
  """Makes the two runs and compares them."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--kills', type=int, default=10)
  parser.add_argument('--bucket', action='store_true', help='on an object store, served on loopback')
  parser.add_argument('--steps', type=int, help='of the runs; as many as the kills need if not given')
  parser.add_argument('--seed', type=int, default=0)
  arguments = parser.parse_args()
  chance = random.Random(arguments.seed)
  steps = arguments.steps or 15 * arguments.kills + 4 * EVAL_PERIOD
  with open_place(arguments.bucket) as place, tempfile.TemporaryDirectory(prefix='kill_test_logs_') as logs:
    log = pathlib.Path(logs) / 'log.txt'
    with log.open('a') as output:
      if place.start(command(place, 'alone', steps), output).wait():
        raise SystemExit(log.read_text())
    print(f'alone: {steps} steps', flush=True)
    log.write_text('')
    killed = command(place, 'killed', steps)
    kills = 0
    while kills < arguments.kills:
      what = run_until_killed(place, killed, log, KINDS[kills % len(KINDS)], chance)
      if what is None:
        break
      kills += 1
      print(f'kill {kills}: {what}', flush=True)
    with log.open('a') as output:
      if place.start(killed, output).wait():
        raise SystemExit(log.read_text())
    found = differences(place, steps)
    found += [f'said: {line}' for line in log.read_text().splitlines() if 'belongs to' in line or 'claimed by' in line]
    evaluations = len(lines(place, 'killed', 'eval'))
  equal = (
    f'after {kills} kills {steps} steps and {evaluations} evaluations are equal in every bit, nothing is left behind'
  )
  print(*(found or [equal]), sep='\n')
  sys.exit(1 if found else 0)


if __name__ == '__main__':
  main()
