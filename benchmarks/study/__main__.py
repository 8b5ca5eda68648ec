"""The paper's claims as studies: each is a sweep of paired seeds, and each claim an interval and a verdict.

    python benchmarks/study experts                  # run a study; the same command goes on where it stopped
    python benchmarks/study --list                   # the studies, and how long each takes
    python benchmarks/study --table                  # one table of all claims, from what has been run
    python benchmarks/study experts --shortened      # the whole way in two steps, one seed; figures mean nothing

All runs see the same batches in the same order for the same seed, and are compared seed by seed. A point is one run of
`switch_jax.main`; a study is run by `switch_jax.sweep`, so two of these commands over one folder share the work.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))
import measures
import pictures
import speedup
from studies import STUDIES

from switch_jax import gin_files
from switch_jax.config import SweepConfig
from switch_jax.folders.model_dir import ModelDir

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
_WORTH = 'How many times more steps the dense model needs for the same loss; mean of the seeds, lowest and highest'


def shorten(sweep: pathlib.Path, shortened: pathlib.Path) -> pathlib.Path:
  """Writes a sweep's file with the first seed only, and no number of steps of a point's own."""
  found, _ = gin_files.load_run([str(sweep)], root=SweepConfig)
  points = tuple({key: value for key, value in point.items() if key != 'TRAIN_STEPS'} for point in found.points)
  header = 'from __gin__ import dynamic_registration\nfrom switch_jax import config\n'
  bound = f'config.SweepConfig.points = {points!r}\nconfig.SweepConfig.seeds = {tuple(found.seeds)[:1]!r}\n'
  shortened.write_text(header + bound, encoding='utf-8')
  return shortened


def sweep_arguments(name: str, out: pathlib.Path, shortened: bool) -> list[str]:
  """Returns the arguments of the sweep of a study; a shortened one has a file of its own in `out`."""
  sweep = HERE / f'{name}.gin'
  if shortened:
    sweep = shorten(sweep, out / f'{name}.gin')
  last = ['shortened.gin'] if shortened else []
  files = [f'--gin_file=benchmarks/study/{file}' for file in (*STUDIES[name].files, *last)]
  return [*files, f'--sweep={sweep}', f'--out={out / name}']


def run(name: str, out: pathlib.Path, arguments: list[str], shortened: bool) -> int:
  """Runs a study's sweep; returns its exit status."""
  command = [sys.executable, '-m', 'switch_jax.sweep', *sweep_arguments(name, out, shortened), *arguments]
  return subprocess.run(command, cwd=ROOT, check=False).returncode


def finished_seeds(folder: pathlib.Path, point: str) -> dict[int, pathlib.Path]:
  """Returns the folders of a point's finished runs by seed; `other/point` is a point of another study."""
  found = {}
  folder = folder.parent if '/' in point else folder
  for path in folder.glob(f'{point},RANDOM_SEED=*'):
    if ModelDir(path).finished.exists():
      found[int(path.name.rpartition('=')[2])] = path
  return found


def judge(name: str, out: pathlib.Path) -> list[dict]:
  """Returns for each claim of a study what its finished seeds say; `found` is None where there is no seed.

  `at_most` is NaN unless a number was not reached and is known to be at most that in all seeds.
  """
  rows = []
  for claim in STUDIES[name].claims:
    runs = {point: finished_seeds(out / name, point) for point in claim.points}
    seeds = sorted(set.intersection(*(set(found) for found in runs.values())))
    folders = [{point: found[seed] for point, found in runs.items()} for seed in seeds]
    values = [claim.measure(folder) for folder in folders]
    found = measures.estimate(values) if values else None
    at_most = math.nan
    if claim.at_most is not None and any(map(math.isnan, values)):
      bounds = [claim.at_most(folder) for folder in folders]
      at_most = max(bound if math.isnan(value) else value for value, bound in zip(values, bounds, strict=True))
    rows.append({'study': name, 'claim': claim, 'seeds': seeds, 'found': found, 'at_most': at_most})
  return rows


def _seeds(count: int) -> str:
  return '1 seed' if count == 1 else f'{count} seeds'


def describe(row: dict) -> list[str]:
  """Returns a claim as cells: claim, the paper's number, ours, verdict."""
  claim, found = row['claim'], row['found']
  if found is None:
    return [claim.text, claim.paper, 'not run here', '']
  if math.isnan(found.mean):
    # One seed cannot tell, here as elsewhere.
    if len(found.values) > 1 and row['at_most'] < claim.above:
      number = f'at most {row["at_most"]:.2f} {claim.unit}, {_seeds(len(found.values))}'
      return [claim.text, claim.paper, number, 'disagrees']
    return [claim.text, claim.paper, 'not reached', 'cannot tell']
  said = measures.verdict(found, claim.above, claim.near)
  low, high = found.interval
  if claim.above == 0.0 and low <= 0 <= high and len(found.values) > 1:
    said += ' (no difference)' if claim.near is None else ''
  return [claim.text, claim.paper, f'{found} {claim.unit}, {_seeds(len(found.values))}', said]


def table(out: pathlib.Path, names: list[str]) -> str:
  """Returns the claims of studies as Markdown."""
  lines = ['| claim | paper | here, ± the 95 % interval | verdict |', '| --- | --- | --- | --- |']
  for name in names:
    rows = judge(name, out)
    command = f'`python benchmarks/study {name}`, {STUDIES[name].minutes} min'
    lines += [f'| **{STUDIES[name].title}** | | {command} | |']
    lines += [f'| {" | ".join(describe(row))} |' for row in rows]
  return '\n'.join(lines)


def points_table(name: str, out: pathlib.Path) -> str:
  """Returns what each point of a study came to as Markdown: parameters, FLOPs, and the loss after steps all reached."""
  import flops

  names = {path.name.rpartition(',')[0] for path in (out / name).glob('*,RANDOM_SEED=*')}
  runs = {point: finished_seeds(out / name, point) for point in sorted(names, key=pictures.order)}
  runs = {point: found for point, found in runs.items() if found}
  task, step = measures.last_shared_step(path for found in runs.values() for path in found.values())
  lines = [f'| point | parameters | forward FLOPs a target token | held-out loss at {step:,} steps | tokens dropped |']
  lines += ['| --- | --- | --- | --- | --- |']
  for point, found in runs.items():
    losses = measures.estimate([dict(measures.curve(path, task))[step] for path in found.values()])
    around = f' ± {losses.deviation:.4f}' if len(found) > 1 else ''
    first = found[min(found)]
    record = ModelDir(first).read_newest_config()[0]
    arguments = json.loads(ModelDir(first).finished.read_text())['arguments']
    dropped = measures.trained(first, 'fraction_dropped')
    lines += [
      f'| {point} | {record["parameters"] / 1e6:.3f}M | {flops.per_target_token(arguments) / 1e3:.1f}k | '
      f'{losses.mean:.4f}{around} ({_seeds(len(found))}) | '
      f'{"" if dropped != dropped else f"{dropped:.1%}"} |'
    ]
  return '\n'.join(lines)


def main() -> int:
  """Runs the studies that are named, or makes the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('studies', nargs='*', metavar='STUDY', help=', '.join(STUDIES))
  parser.add_argument('--out', type=pathlib.Path, default=ROOT / 'runs' / 'study', help='folder of all runs')
  parser.add_argument('--jobs', type=int, default=2, help='runs at once (default: 2)')
  parser.add_argument('--list', action='store_true', help='say what there is, and run nothing')
  parser.add_argument('--shortened', action='store_true', help='two steps, one seed: figures mean nothing')
  parser.add_argument('--table', action='store_true', help='tables and pictures of what there is, and run nothing')
  flags = parser.parse_args()
  if flags.list:
    for name, study in STUDIES.items():
      print(f'{name:<20} {study.minutes:>4} min   {study.title}')
    print(f'{"all":<20} {sum(study.minutes for study in STUDIES.values()):>4} min   on two idle cores')
    return 0
  if unknown := [name for name in flags.studies if name not in STUDIES]:
    parser.error(f'there is no study {unknown[0]!r}; there are {", ".join(STUDIES)}')
  if not flags.studies and not flags.table:
    parser.error(f'name a study ({", ".join(STUDIES)}), or say --list or --table')
  if flags.shortened and flags.out == parser.get_default('out'):
    flags.out = flags.out.with_name('study_shortened')
  out = flags.out.resolve()
  out.mkdir(parents=True, exist_ok=True)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  # Models this small gain nothing from a second thread; a second run does.
  os.environ.setdefault('XLA_FLAGS', '--xla_cpu_multi_thread_eigen=false')
  names, failed = flags.studies or list(STUDIES), False
  for name in names if not flags.table else ():
    for needed in filter(None, (STUDIES[name].needs, name)):
      failed |= run(needed, out, [f'--jobs={flags.jobs}'], flags.shortened) != 0
  text = table(out, names)
  for name in names:
    if any(ModelDir(path).finished.exists() for path in (out / name).glob('*')):
      text += f'\n\n{STUDIES[name].title}\n\n{points_table(name, out)}'
      pictures.draw(name, out)
      if name == 'experts':
        points = sorted({path.name.partition(',')[0] for path in (out / name).glob('experts_*')}, key=pictures.order)
        text += f'\n\n{_WORTH}\n\n{speedup.table(out / name, points)}'
  (out / 'table.md').write_text(text + '\n', encoding='utf-8')
  print(text)
  return int(failed)


if __name__ == '__main__':
  sys.exit(main())
