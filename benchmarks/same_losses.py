"""Whether two checkouts train alike: every number of every step, bit for bit, on the same machine.

  git worktree add ../before dcb2090
  python benchmarks/same_losses.py --before ../before --after .

Three comparisons, each command run in both checkouts with the same environment:

* `quickstart`: the first 60 steps of the quickstart on one device;
* `eight devices`: 20 steps of switch_tiny on eight emulated devices, dropout, expert dropout and jitter on;
* `continued`: the quickstart's steps 31 to 60 by `--after` from the checkpoint that `--before` wrote at step 30.

Speeds and memory are left out of the comparison. Exit status 1 if anything differs.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

EXAMPLE = '--gin_file=gin/examples/quickstart.gin'
QUICKSTART = (EXAMPLE, '--gin.LOG_PERIOD=1', '--gin.CHECKPOINT_PERIOD=30', '--gin.EVAL_PERIOD=30', '--gin.EVAL_STEPS=4')
NOISE = (
  '--gin.config.ModelConfig.dropout_rate=0.1',
  '--gin.config.MoeConfig.expert_dropout_rate=0.4',
  '--gin.config.MoeConfig.jitter_noise=0.01',
)
# Clocks and memory, which no two runs share.
MEASURED = ('_per_second', 'input_wait_fraction', 'memory')


def train(checkout: pathlib.Path, folder: pathlib.Path, steps: int, *arguments: str, devices: int = 1) -> None:
  """Trains in `folder` with the code of a checkout."""
  environment = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'XLA_FLAGS')}
  environment |= {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
  command = [sys.executable, '-m', 'switch_jax.main', *arguments, f'--gin.MODEL_DIR={folder}']
  command += [f'--gin.TRAIN_STEPS={steps}', '--compilation_cache_dir=off']
  done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
  if done.returncode:
    raise SystemExit(f'{checkout}: exit status {done.returncode}\n{done.stderr[-2000:]}')


def lines(folder: pathlib.Path) -> dict[str, dict[str, float]]:
  """Returns the numbers of training and of evaluations by place and step, as they stand in the files."""
  found = {}
  for path in [folder / 'train' / 'metrics.jsonl', *sorted(folder.glob('eval/*/metrics.jsonl'))]:
    for text in path.read_text().splitlines():
      line = json.loads(text)
      where = f'{path.parent.name} step {line["step"]}'
      found[where] = {k: v for k, v in line.items() if not any(part in k for part in MEASURED)}
  return found


def report(name: str, before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> bool:
  """Prints whether two sets of numbers are equal; returns it."""
  differ = [
    f'{where}, {key}: {before.get(where, {}).get(key)} before, {after.get(where, {}).get(key)} after'
    for where in {**before, **after}
    for key in {**before.get(where, {}), **after.get(where, {})}
    if before.get(where, {}).get(key) != after.get(where, {}).get(key)
  ]
  count = sum(map(len, before.values()))
  print(
    f'{name}: {len(before)} lines, {count} numbers: ' + (f'{len(differ)} differ' if differ else 'equal bit for bit')
  )
  print(''.join(f'  {line}\n' for line in differ[:5]), end='', flush=True)
  return not differ


def main() -> int:
  """Runs the three comparisons; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--before', type=pathlib.Path, required=True, help='a checkout')
  parser.add_argument('--after', type=pathlib.Path, required=True, help='another')
  parser.add_argument('--keep', type=pathlib.Path, help='where to keep the runs of --before, to be used again')
  arguments = parser.parse_args()
  work = pathlib.Path(tempfile.mkdtemp(prefix='same_losses_'))
  old, new = (arguments.keep or work / 'before').absolute(), work / 'after'
  runs = {'quickstart': (60, QUICKSTART, 1), 'eight devices': (20, (*QUICKSTART, *NOISE), 8)}
  equal = True
  for name, (steps, settings, devices) in runs.items():
    for checkout, place in ((arguments.before, old), (arguments.after, new)):
      if not (place / name / 'summary.png').exists():
        train(checkout, place / name, steps, *settings, devices=devices)
    equal &= report(name, lines(old / name), lines(new / name))
  begun = new / 'continued'
  if not (old / 'half' / 'summary.png').exists():
    train(arguments.before, old / 'half', 30, *QUICKSTART)
  shutil.copytree(old / 'half', begun)
  train(arguments.after, begun, 60, *QUICKSTART)
  equal &= report('continued', lines(old / 'quickstart'), lines(begun))
  shutil.rmtree(work)
  return 0 if equal else 1


if __name__ == '__main__':
  sys.exit(main())
