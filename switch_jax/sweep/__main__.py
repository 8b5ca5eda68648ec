"""Runs a sweep: `python -m switch_jax.sweep --gin_file=BASE --sweep=FILE.gin --out=DIR`."""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from switch_jax import gin_files, launch
from switch_jax import main as command_line
from switch_jax.config import ConfigError, RunConfig, SweepConfig, first_line
from switch_jax.config.together import settings_in_common
from switch_jax.folders.cache import cache_directory
from switch_jax.folders.remote import is_remote, is_storage_error
from switch_jax.sweep import results, runner
from switch_jax.sweep.points import Point, main_arguments, make_points, point_arguments, result_folder

_EPILOG = """\
FILE.gin says what varies:

  from __gin__ import dynamic_registration
  from switch_jax import config
  config.SweepConfig.grid = {'NUM_EXPERTS': (4, 8), 'config.MoeConfig.router': ('top1', 'top2')}
  config.SweepConfig.seeds = (0, 1, 2)

Each point is a run of switch_jax.main whose MODEL_DIR is DIR/NAME_OF_THE_POINT. What has finished is not run again, and
one that was stopped goes on from its checkpoint. --gin.NAME=VALUE sets what all points share.

  python -m switch_jax.sweep --gin_file=gin/examples/quickstart.gin --sweep=seeds.gin --out=runs/seeds --jobs=2
  python -m switch_jax.sweep ... --together=24      # seeds and learning rates of a tiny model in one program
  python -m switch_jax.sweep ... --print_commands > commands.txt    # for a cluster's own queue, a command a line
"""


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of the flags; those of gin are taken out before."""
  parser = launch.ArgumentParser(
    prog='python -m switch_jax.sweep',
    description='Run one configuration with many values of some bindings.',
    epilog=_EPILOG,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--gin_file', action='append', required=True, metavar='FILE', help='a gin file of all points; may be repeated')
  add('--sweep', required=True, metavar='FILE', help='the gin file that says what varies')
  add('--out', required=True, metavar='DIR', help='where the folders of the points are made')
  add('--gin_search_paths', default='', metavar='DIRS', help='folders, with commas, to look for gin files in')
  add('--jobs', type=int, default=1, metavar='N', help='points that run at once (default: 1)')
  add(
    '--together', type=int, default=1, metavar='N',
    help='points, of those that differ in seed, learning rate or beginning only, that one program trains (default: 1)',
  )  # fmt: skip
  add('--print_commands', action='store_true', help='print a command for each point, and run nothing')
  add('--table', action='store_true', help='write the summary of what is there, and run nothing')
  add('--compilation_cache_dir', metavar='DIR', help='where compiled programs are kept; off for nowhere')
  add('--debug', action='store_true', help='show tracebacks and the log lines of libraries')
  return parser


def parse_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Returns the flags, and the gin bindings of all points as `NAME=VALUE`.

  Raises:
    ConfigError: a flag is unknown, wrong or missing.
  """
  others, bindings = command_line.split_gin_bindings(argv)
  flags = make_parser().parse_args(others)
  for name in ('jobs', 'together'):
    if getattr(flags, name) < 1:
      raise ConfigError(f'--{name} is {getattr(flags, name)}; it must be at least 1.')
  for name, value in (('out', flags.out), ('sweep', flags.sweep)):
    if not value:
      raise ConfigError(f'--{name} is empty; give it a path.')
  if flags.print_commands and flags.table:
    raise ConfigError('--print_commands and --table both ask for output and no run; give one of them.')
  return flags, bindings


def make_commands(
  points: Sequence[Point], flags: argparse.Namespace, bindings: Sequence[str]
) -> dict[str, tuple[list[str], RunConfig]]:
  """Returns for each point the arguments of `switch_jax.main`, and its configuration.

  Raises:
    ConfigError: a point's configuration is refused, such as for a binding that does not exist.
  """
  others = [f'--compilation_cache_dir={flags.compilation_cache_dir}'] if flags.compilation_cache_dir else []
  others += ['--debug'] if flags.debug else []
  search_paths = [path for path in flags.gin_search_paths.split(',') if path]
  found = {}
  for point in points:
    files, bound = point_arguments(point, flags.gin_file, bindings, flags.out)
    try:
      run, _ = gin_files.load_run(files, bound, search_paths)
    except ConfigError as error:
      raise ConfigError(f'nothing was run, because the point {point.name} is refused: {error}') from None
    found[point.name] = main_arguments(files, bound, flags.gin_search_paths, others), run
  return found


def make_kinds(points: Sequence[Point], runs: Mapping[str, RunConfig]) -> dict[str, str]:
  """Returns for each point that can be trained with others what those have in common, as text.

  None of them needs another one: the longest way of needs behind each is of one length.
  """
  kinds: dict[str, str] = {}
  depths: dict[str, int] = {}
  for point in points:  # those that it needs come before it
    depths[point.name] = max((depths[name] + 1 for name in point.needs), default=0)
    if (settings := settings_in_common(runs[point.name])) is not None:
      kinds[point.name] = json.dumps([depths[point.name], settings], sort_keys=True)
  return kinds


def _check_other_sweeps(points: Sequence[Point], out: str) -> None:
  """Raises a `ConfigError` if a point takes something from a point of another sweep that has not finished."""
  for point in points:
    for binding, place in point.results.items():
      folder = result_folder(out, place)
      if place not in point.needs and results.read_finished(epath.Path(folder)) is None:
        raise ConfigError(
          f'nothing was run, because the point {point.name} takes {binding} from {folder}, which has not finished; run '
          'that sweep first.'
        )


def _make_folder(out: str) -> tuple[epath.Path, epath.Path]:
  """Returns the folder of the points' MODEL_DIRs and, for their logs, a local one: the same, or one in the cache."""
  path = logs = epath.Path(out)
  if is_remote(out):
    logs = epath.Path(cache_directory() / 'sweeps' / hashlib.sha256(out.encode()).hexdigest()[:16])
  try:
    path.mkdir(parents=True, exist_ok=True)
    logs.mkdir(parents=True, exist_ok=True)
    if path == logs:
      (path / results.SUMMARY).touch()
  except Exception as error:
    if not is_storage_error(error):
      raise
    reason = getattr(error, 'strerror', None) or first_line(error)
    raise ConfigError(f'--out is {out!r}, which cannot be written ({reason}); write elsewhere.') from None
  return path, logs


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
  """Lets SIGTERM (a queue that takes the machine back) end the sweep and its runs, as Ctrl-C does."""

  def end(number, frame):
    raise SystemExit(128 + number)

  before = signal.signal(signal.SIGTERM, end)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def _note(text: str) -> None:
  print(text, flush=True)


def _run(argv: Sequence[str]) -> int:
  flags, bindings = parse_flags(argv)
  search_paths = [path for path in flags.gin_search_paths.split(',') if path]
  sweep, _ = gin_files.load_run([flags.sweep], (), search_paths, root=SweepConfig)
  points = make_points(sweep)
  made = make_commands(points, flags, bindings)
  commands = {name: arguments for name, (arguments, _) in made.items()}
  if flags.print_commands:
    for arguments in commands.values():
      print(shlex.join(['python', '-m', 'switch_jax.main', *arguments]))
    return 0
  if not flags.table:
    _check_other_sweeps(points, flags.out)
  out, logs = _make_folder(flags.out)
  if flags.table:
    done = [name for name, arguments in commands.items() if runner.is_finished(out / name, arguments)]
    statuses = dict.fromkeys(done, results.FINISHED_STATUS)
  else:
    _note(f'{len(points)} points, {flags.jobs} at once, in {out}' + (f', logs in {logs}' if logs != out else ''))
    with _sigterm_raises():
      needs = {point.name: point.needs for point in points}
      kinds = make_kinds(points, {name: run for name, (_, run) in made.items()})
      statuses = runner.run_points(commands, needs, out, logs, flags.jobs, _note, kinds, flags.together)
  found = results.rows(points, out, statuses)
  results.write_csv(found, out / results.SUMMARY)
  _note(results.table(found))
  failed = [name for name, status in statuses.items() if status in (results.FAILED, results.STOPPED)]
  _note(f'wrote {out / results.SUMMARY}')
  if failed:
    texts = ', '.join(str(logs / name / runner.LOG) for name in failed)
    print(
      f'error: {len(failed)} of {len(points)} points failed, see {texts}; the same command tries them again',
      file=sys.stderr,
    )
  return 1 if failed else 0


def _train_together(argv: Sequence[str]) -> int:
  """Trains the runs whose arguments a file lists, and writes the errors of those that failed alone beside it."""
  file = pathlib.Path(argv[1])
  loaded = []
  for arguments in json.loads(file.read_text()):
    flags, bindings = command_line.parse_flags(arguments)
    search_paths = [path for path in flags.gin_search_paths.split(',') if path]
    loaded.append(gin_files.load_run(flags.gin_file, bindings, search_paths))
  launch.quiet_logging(flags.debug)
  launch.use_compilation_cache(flags.compilation_cache_dir)
  from switch_jax.sweep.together import train_points

  errors, status = train_points(*zip(*loaded, strict=True))
  runner.errors_file(file).write_text(json.dumps(errors))
  return status


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line and returns the exit status: 0, 1 for an error or a failed point, 130 after Ctrl-C.

  After SIGTERM it raises SystemExit(143), once the runs have been told to end.
  """
  argv = sys.argv[1:] if argv is None else argv
  if argv[:1] == [runner.TOGETHER]:  # what the runner starts
    return launch.exit_status(_train_together, argv, interrupted='the same command goes on from the last checkpoint')
  return launch.exit_status(_run, argv, interrupted='the same command goes on where it stopped')


if __name__ == '__main__':
  if sys.argv[1:2] == [runner.TOGETHER]:
    launch.restart_with_huge_pages()
    launch.keep_freed_memory()
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # everything is written and closed; see `together.py` for what is not waited for
  sys.exit(main())
