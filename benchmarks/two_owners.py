"""Starts the same training twice within 50 ms, many times: one trains and the other is refused, never two.

  python benchmarks/two_owners.py --races=50
  python benchmarks/two_owners.py --races=50 --bucket

Races come in pairs. The first is for a MODEL_DIR that is not there; its winner is killed when it trains, so that the
second is for one whose owner is dead, and takes it over without anybody's help. A loser must end with status 1 and the
line that names the owner; each step must stand once in the winner's metrics. Exit status 0 if all of it was so.
"""

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from places import Local, open_place

STEPS = 3


def command(place: Local, run: str, steps: int) -> list[str]:
  """Returns the command of a run, what follows `python`."""
  names = {'TRAIN_STEPS': steps, 'LOG_PERIOD': 1, 'CHECKPOINT_PERIOD': steps, 'EVAL_STEPS': 1, 'BATCH_SIZE': 8}
  gin = [f'--gin.{name}={value}' for name, value in {'MODEL_DIR': f'{place.root}/{run}', **names}.items()]
  return ['-m', 'switch_jax.main', '--gin_file=gin/examples/quickstart.gin', *gin]


def trained(log: pathlib.Path) -> bool:
  """Whether a run has done a step."""
  return '\nstep ' in log.read_text()


def race(place: Local, run: str, kill: bool, folder: pathlib.Path, chance: random.Random) -> list[str]:
  """Starts both and waits; returns what was wrong."""
  logs = [folder / f'{run}_{int(kill)}_{i}.log' for i in range(2)]
  running: list[subprocess.Popen] = []
  for log in logs:
    with log.open('w') as output:
      running.append(place.start(command(place, run, 100_000 if kill else STEPS), output))
    time.sleep(chance.uniform(0, 0.05) * (len(running) == 1))
  killed = None
  while any(process.poll() is None for process in running):
    for number, (process, log) in enumerate(zip(running, logs, strict=True)):
      other = running[1 - number]
      if kill and killed is None and process.poll() is None and other.poll() is not None and trained(log):
        process.send_signal(signal.SIGKILL)
        killed = number
    time.sleep(0.01)
  winners = [i for i in range(2) if trained(logs[i])]
  found = [] if len(winners) == 1 else [f'{len(winners)} trained']
  for number, (process, log) in enumerate(zip(running, logs, strict=True)):
    text = log.read_text()
    expected = (-signal.SIGKILL if number == killed else 0) if number in winners else 1
    if process.returncode != expected:
      found.append(f'process {number} ended with {process.returncode}: {text[-500:]}')
    if number not in winners and not ('error: ' in text and 'belongs to process' in text):
      found.append(f'the loser did not say whose it is: {text[-500:]}')
  if not kill and not found:
    steps = [line['step'] for line in place.open(run).read_train()]
    if steps != list(range(1, STEPS + 1)):
      found.append(f'steps in metrics: {json.dumps(steps)}')
  return found


def main() -> None:
  """Makes the races and prints how they ended."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--races', type=int, default=50)
  parser.add_argument('--bucket', action='store_true', help='on an object store, served on loopback')
  parser.add_argument('--seed', type=int, default=0)
  arguments = parser.parse_args()
  chance, failed = random.Random(arguments.seed), 0
  with open_place(arguments.bucket) as place, tempfile.TemporaryDirectory(prefix='two_owners_') as logs:
    for number in range(arguments.races):
      found = race(place, f'run_{number // 2}', number % 2 == 0, pathlib.Path(logs), chance)
      failed += bool(found)
      print(f'race {number + 1}:', *(found or ['one trained, the other was refused']), flush=True)
  print(f'{arguments.races} races, {failed} of them wrong')
  sys.exit(1 if failed else 0)


if __name__ == '__main__':
  main()
