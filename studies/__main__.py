"""The paper's claims as studies: each is a sweep of paired seeds, and each claim an interval and a verdict.

    python -m studies experts                  # run a study; the same command goes on where it stopped
    python -m studies all                      # all of them
    python -m studies --list                   # the studies, and how long each takes
    python -m studies --table                  # the page of results and its pictures, from results/*.json
    python -m studies experts --shortened      # the whole way in two steps, one seed; figures mean nothing

All runs see the same batches in the same order for the same seed, and are compared seed by seed. A point is one run of
`switch_jax.main`; a study is run by `switch_jax.sweep`, so two of these commands over one folder share the work. What
the runs came to is written to `results/STUDY.json`, from which tables and pictures are made.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from studies import pictures, records, step_times, tables
from studies.claims import judge
from studies.paper import STUDIES
from switch_jax import gin_files, launch
from switch_jax.config import ConfigError, RunConfig, SweepConfig, suggest
from switch_jax.monitoring.interruption import EXIT_CODES
from switch_jax.sweep.points import make_points, point_arguments

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
PAGE, PICTURES = ROOT / 'docs' / 'results.md', HERE / 'pictures'
_SWEEP = ('-m', 'switch_jax.sweep')
BEGIN, END = '<!-- python -m studies --table: begin -->', '<!-- python -m studies --table: end -->'


def _shortened(point: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a point without a number of steps of its own; its own gin files do not come last."""
  files = point.get('gin_file', ())
  files = (files,) if isinstance(files, str) else files
  rest = {key: value for key, value in point.items() if key not in ('TRAIN_STEPS', 'gin_file')}
  return {**rest, 'gin_file': (*files, 'studies/gin/shortened.gin')}


def shorten(sweep: pathlib.Path, shortened: pathlib.Path) -> pathlib.Path:
  """Writes a sweep's file with first seed and values of the grid only, and no number of steps of a point's own."""
  found, _ = gin_files.load_run([str(sweep)], root=SweepConfig)
  points = tuple(_shortened(point) for point in found.points)
  header = 'from __gin__ import dynamic_registration\nfrom switch_jax import config\n'
  first = {
    'points': points,
    'seeds': found.seeds[:1],
    'grid': {name: values[:1] for name, values in found.grid.items()},
  }
  bound = ''.join(f'config.SweepConfig.{name} = {values!r}\n' for name, values in first.items())
  shortened.write_text(header + bound, encoding='utf-8')
  return shortened


def sweep_arguments(name: str, out: pathlib.Path, shortened: bool) -> list[str]:
  """Returns the arguments of the sweep of a study; a shortened one has a file of its own in `out`."""
  sweep = HERE / 'gin' / f'{name}.gin'
  if shortened:
    sweep = shorten(sweep, out / f'{name}.gin')
  files = [f'--gin_file=studies/gin/{file}' for file in STUDIES[name].files]
  return [*files, f'--sweep={sweep}', f'--out={out / name}']


def runs_of(name: str) -> dict[str, RunConfig]:
  """Returns the configuration of the first seed of every point of a study, by point."""
  sweep, _ = gin_files.load_run([str(HERE / 'gin' / f'{name}.gin')], root=SweepConfig)
  found = {}
  for point in make_points(sweep):
    files, bindings = point_arguments(point, [f'studies/gin/{file}' for file in STUDIES[name].files], (), '/unused')
    model, _, _ = point.name.rpartition(',RANDOM_SEED=')
    if model not in found:
      found[model], _ = gin_files.load_run(files, bindings)
  return found


def run(name: str, out: pathlib.Path, arguments: Sequence[str], shortened: bool) -> int:
  """Runs a study's sweep; returns its exit status.

  Ctrl-C and SIGTERM end it in good order: it is told, and waited for.
  """
  command = [sys.executable, *_SWEEP, *sweep_arguments(name, out, shortened), *arguments]
  child = subprocess.Popen(command, cwd=ROOT)
  # A terminal gives Ctrl-C to both.
  handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: child.terminate()}
  before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
  try:
    return child.wait()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def set_aside(name: str, out: pathlib.Path) -> None:
  """Gives the folder of a study's runs another name, so that all of them are made again."""
  folder = out / name
  if folder.exists():
    number = 1
    while (aside := out / f'{name}.{number}').exists():
      number += 1
    folder.rename(aside)
    print(f'{folder} is {aside} now', flush=True)


def with_page(text: str, made: str) -> str:
  """Returns the text of the page of results with what was made between its two marks.

  Raises:
    ValueError: the page has no such marks.
  """
  before, first, rest = text.partition(BEGIN)
  _, last, after = rest.partition(END)
  if not (first and last):
    raise ValueError(f'{PAGE} has no {BEGIN} and {END}')
  return f'{before}{BEGIN}\n\n{made}\n\n{END}{after}'


def make_page(folder: pathlib.Path = records.RESULTS, names: Sequence[str] = tuple(STUDIES)) -> str:
  """Returns what `results/*.json` say of the named studies; verdicts are corrected for the claims of all."""
  results = {name: found for name in STUDIES if (found := records.load(name, folder))}
  judged = judge({name: STUDIES[name] for name in results}, results)
  shown = {name: study for name, study in STUDIES.items() if name in names}
  found = {name: results[name] for name in shown if name in results}
  return tables.page(shown, judged, found, step_times.load('horizon', folder))


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of the flags."""
  parser = argparse.ArgumentParser(prog='python -m studies', description=__doc__.split('\n')[0])
  add = parser.add_argument
  add('studies', nargs='*', metavar='STUDY', help=f'{", ".join(STUDIES)}, or all')
  add('--out', type=pathlib.Path, default=ROOT / 'runs' / 'studies', help='folder of all runs')
  add('--jobs', type=int, default=2, help='runs at once (default: 2)')
  add('--together', type=int, default=8, help='seeds and rates of a model that one program trains (default: 8)')
  add('--list', action='store_true', help='say what there is, and run nothing')
  add('--shortened', action='store_true', help='two steps, one seed: figures mean nothing')
  add('--fresh', action='store_true', help='set the runs of the named studies aside and make them again')
  add('--step_times', action='store_true', help='time a step of each model of the named studies, and run nothing')
  add('--table', action='store_true', help='write tables and pictures of the results, and run nothing')
  return parser


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags; `studies` are names then, with `all` put out."""
  parser = make_parser()
  flags = parser.parse_args(argv)
  for name in ('jobs', 'together'):
    if getattr(flags, name) < 1:
      parser.error(f'--{name} is {getattr(flags, name)}; it is 1 or more')
  if unknown := [name for name in flags.studies if name not in (*STUDIES, 'all')]:
    text = suggest(unknown[0], STUDIES) or f' There are {", ".join(STUDIES)}, and all.'
    parser.error(f'there is no study {unknown[0]!r}.{text}')
  if 'all' in flags.studies:
    flags.studies = list(STUDIES)
  if flags.table and flags.studies:
    parser.error('--table is about all studies; name none')
  if not (flags.studies or flags.table or flags.list):
    parser.error(f'name a study ({", ".join(STUDIES)}, all), or say --list or --table')
  if flags.shortened and flags.out == parser.get_default('out'):
    flags.out = flags.out.with_name('studies_shortened')
  return flags


def _run(argv: Sequence[str]) -> int:
  flags = parse_flags(argv)
  if flags.list:
    for name, study in STUDIES.items():
      print(f'{name:<20} {study.minutes:>4} min   {study.title}')
    print(f'{"all":<20} {sum(study.minutes for study in STUDIES.values()):>4} min   on two idle cores')
    return 0
  if flags.table:
    PAGE.write_text(with_page(PAGE.read_text(encoding='utf-8'), make_page()), encoding='utf-8')
    PICTURES.mkdir(exist_ok=True)
    for name in STUDIES:
      if STUDIES[name].claims and (results := records.load(name)):
        pictures.draw(results, PICTURES / f'{name}.png')
    print(f'{PAGE}, {PICTURES}')
    return 0
  if flags.step_times:
    for name in flags.studies:
      print(step_times.write(name, step_times.measure(runs_of(name))))
    return 0
  return run_all(flags)


def run_all(flags: argparse.Namespace) -> int:
  """Runs studies, and those they need before; writes results, prints tables; returns the exit status.

  Raises:
    ConfigError: there can be no folder of that name.
    KeyboardInterrupt: after Ctrl-C, when all runs have ended.
  """
  out = flags.out.resolve()
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(f'--out={flags.out} cannot be made ({error.strerror}); give another folder.') from None
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  # Models this small gain nothing from a second thread; a second run does.
  os.environ.setdefault('XLA_FLAGS', '--xla_cpu_multi_thread_eigen=false')
  # Figures of two steps are nobody's results.
  folder = out / 'results' if flags.shortened else records.RESULTS
  needed = [need for name in flags.studies if (need := STUDIES[name].needs)]
  failed, shown = [], []
  for name in dict.fromkeys([*needed, *flags.studies]):
    if flags.fresh and name in flags.studies:
      set_aside(name, out)
    status = run(name, out, [f'--jobs={flags.jobs}', f'--together={flags.together}'], flags.shortened)
    if status == EXIT_CODES['SIGINT']:
      raise KeyboardInterrupt
    if status == EXIT_CODES['SIGTERM']:
      return status
    if status:
      failed.append(name)
    results, notes = records.read_runs(name, out)
    for note in notes:
      print(note, file=sys.stderr)
    if results:
      shown.append(name)
      path = records.write(results, folder)
      if STUDIES[name].claims:
        pictures.draw(results, out / f'{name}.png')
      print(path, flush=True)
  (out / 'page.md').write_text(make_page(folder) + '\n', encoding='utf-8')
  if shown:
    print(make_page(folder, shown), flush=True)
  if failed:
    raise ConfigError(f'{", ".join(failed)}: not all runs have finished, see above; the same command tries them again.')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the studies that are named, or makes the page of results; returns the exit status."""
  argv = sys.argv[1:] if argv is None else argv
  return launch.exit_status(_run, argv, interrupted='the same command goes on where it stopped')


if __name__ == '__main__':
  if '--step_times' in sys.argv:  # steps are timed in this process, with the memory that training has
    launch.restart_with_huge_pages()
    launch.keep_freed_memory()
  sys.exit(main())
