"""Makes the report: `python -m switch_jax.report MODEL_DIR [MODEL_DIR ...] --out=report.html`."""

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from etils import epath

from switch_jax import launch
from switch_jax.config import ConfigError, first_line
from switch_jax.folders.model_dir import ModelDir
from switch_jax.folders.remote import is_remote, is_storage_error
from switch_jax.report import runs as runs_on_disk
from switch_jax.report.runs import Run

_EPILOG = """\
MODEL_DIR is the folder of a run, finished or not, or a folder of such folders (the --out of switch_jax.sweep).

  python -m switch_jax.report runs/quickstart
  python -m switch_jax.report runs/sweep runs/another --experts --out=comparison.html
"""


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of the flags."""
  parser = launch.ArgumentParser(
    prog='python -m switch_jax.report',
    description='Pictures and tables of runs, one HTML file that needs no network.',
    epilog=_EPILOG,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('model_dirs', nargs='+', metavar='MODEL_DIR', help='runs, or folders of runs')
  add('--out', default='report.html', metavar='FILE', help='the file to write (default: report.html)')
  add('--experts', action='store_true', help='measure what each expert takes on held-out data, where it is missing')
  add('--debug', action='store_true', help='show tracebacks')
  return parser


def check_output(file: str) -> None:
  """Raises a `ConfigError` if a file cannot be written: before any work, and without touching it."""
  if is_remote(file):
    return  # its store says it when it is written
  path = pathlib.Path(file).absolute()
  if path.is_dir():
    raise ConfigError(
      f'--out is {file!r}, which is a folder; give a file, such as {os.path.join(file, "report.html")}.'
    )
  if not path.parent.is_dir():
    raise ConfigError(f'--out is {file!r}, and the folder {path.parent} does not exist; make it, or write elsewhere.')
  try:
    # Asking is not enough: the superuser may write to folders that take no file.
    with path.open('ab') if path.exists() else tempfile.TemporaryFile(dir=path.parent):
      pass
  except OSError as error:
    raise ConfigError(f'--out is {file!r}, which cannot be written ({error.strerror}); write elsewhere.') from error


def _print(text: str) -> None:
  print(text, flush=True)


def _read(folders: Sequence[os.PathLike[str]]) -> tuple[list[Run], list[str]]:
  """Reads all runs; returns those that can be shown, and what is wrong with these and others."""
  found, problems = [], []
  for folder, name in zip(folders, runs_on_disk.names_of(folders), strict=True):
    run, wrong = runs_on_disk.read_run(folder, name)
    problems += wrong
    found += [run] if run else []
  return found, problems


def _measure(runs: Sequence[Run], debug: bool) -> list[str]:
  """Measures what experts take in the runs where it is not known for the newest checkpoint; returns what failed."""
  launch.quiet_logging(debug)
  launch.use_compilation_cache(None)
  from switch_jax.checkpoints import CheckpointStore
  from switch_jax.inference import expert_affinity

  problems = []
  for number, run in enumerate(runs, 1):
    which = f'[{number}/{len(runs)}] {run.name}'
    if not run.moe:
      _print(f'{which}: no experts')
      continue
    try:
      store = CheckpointStore(run.path)
      step = store.latest_step()
      place = ModelDir(run.path)
      known = step is not None and place.experts(run.task, step)
      if known and known.exists() and known.stat().mtime >= place.config(step).stat().mtime:
        _print(f'{which}: {known.name} is there')
        continue
      _print(f'{which}: running the newest checkpoint on the held-out data ...')
      _print(f'{which}: wrote {expert_affinity.write_experts(run.path)}')
    except ConfigError as error:
      _print(f'{which}: {error}')
      problems.append(f'{run.name}: what its experts take could not be measured: {error}')
  return problems


def _render(runs: list[Run], problems: list[str]) -> tuple[str, list[Run]]:
  """Returns the page and the runs on it; one that alone cannot be shown is left out, and added to the problems.

  Raises:
    ConfigError: none can be shown.
  """
  from switch_jax.report.page import render

  try:
    return render(runs, problems), runs
  except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
    if len(runs) < 2:
      raise
    whole = error
  shown = []
  for run in runs:
    try:
      render([run])
      shown.append(run)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
      problems.append(f'{run.name} is left out: its files hold what no run writes ({first_line(error)}).')
  if len(shown) == len(runs) or not shown:
    raise whole
  return render(shown, problems), shown


def _run(argv: Sequence[str]) -> int:
  flags = make_parser().parse_args(argv)
  check_output(flags.out)
  folders, of_folders = runs_on_disk.find_folders(flags.model_dirs)
  runs, of_runs = _read(folders)
  failed: list[str] = []
  if not runs:
    raise ConfigError(
      f'there is no run to report on: {" ".join([*of_folders, *of_runs])} Name the MODEL_DIR of a run that has begun.'
    )
  if flags.experts:
    failed = _measure(runs, flags.debug)
    runs, of_runs = _read(folders)
  problems = [*of_folders, *of_runs, *failed]
  page, runs = _render(runs, problems)
  try:
    epath.Path(flags.out).write_text(page, encoding='utf-8')
  except Exception as error:
    if not is_storage_error(error):
      raise
    cause = first_line(error)
    raise ConfigError(f'--out is {flags.out!r}, which cannot be written ({cause}); write elsewhere.') from error
  for problem in problems:
    print(f'note: {problem}', file=sys.stderr)
  missing = [run.name for run in runs if run.moe and not run.experts]
  if missing:
    _print(f'{len(missing)} of the runs have experts that were not measured; --experts does it.')
  _print(f'wrote {flags.out}: {len(runs)} run{"s" if len(runs) != 1 else ""}, {len(page.encode()) / 1e6:.1f} MB')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line and returns the exit status: 0, 1 for an error, 130 after Ctrl-C."""
  argv = sys.argv[1:] if argv is None else argv
  return launch.exit_status(_run, argv, interrupted='what was measured is kept; the same command goes on')


if __name__ == '__main__':
  sys.exit(main())
