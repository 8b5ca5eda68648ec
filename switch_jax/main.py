"""The command line: flags, gin files, one `RunConfig`, and the thing to do with it.

Errors of the user end in one line and exit status 1 before JAX or TensorFlow are imported, whenever that can be.
"""

import argparse
import dataclasses
import difflib
import functools
import os
import re
import shlex
import sys
from collections.abc import Sequence

import switch_jax
from switch_jax import gin_t5x, launch
from switch_jax.config import ConfigError, EvaluationConfig, PredictionConfig, RunConfig, suggest

RUN_MODES = ('train', 'eval', 'infer', 'plan', 'teacher')

# What a plan does not depend on, so that no task and no folder need be named for it.
_NOT_PLANNED = {'MODEL_DIR': 'none', 'MIXTURE_OR_TASK_NAME': 'none', 'TRAIN_STEPS': 1}

_EPILOG = """\
--gin.NAME=VALUE sets a macro (--gin.TRAIN_STEPS=1000) or a field (--gin.config.ModelConfig.emb_dim=256) over all
gin files. Text needs no quotes of its own: --gin.MODEL_DIR=/some/dir.

  python -m switch_jax.main --gin_file=gin/examples/quickstart.gin --gin.TRAIN_STEPS=1000
  python -m switch_jax.main --run_mode=plan --topology=v3:4x4 --gin_file=gin/models/switch_base.gin \
      --gin_file=gin/runs/pretrain.gin
"""


class _Version(argparse.Action):
  """Prints the versions that a report of a bug should contain."""

  def __call__(self, parser, namespace, values, option_string=None):
    from importlib import metadata

    packages = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'seqio', 'tensorflow')
    found = []
    for package in packages:
      try:
        found.append(f'{package} {metadata.version(package)}')
      except metadata.PackageNotFoundError:
        found.append(f'{package} is missing')
    print(f'switch_jax {switch_jax.__version__} (Python {sys.version.split()[0]}, {", ".join(found)})')
    parser.exit()


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of the flags; those of gin are taken out before."""
  parser = launch.ArgumentParser(
    prog='python -m switch_jax.main',
    description='Train Switch Transformers.',
    epilog=_EPILOG,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--gin_file', action='append', default=[], metavar='FILE', help='a gin file; later ones win over earlier ones')
  add('--gin_bindings', metavar='NAME=VALUE', help='as --gin.NAME=VALUE')
  add('--gin_search_paths', default='', metavar='DIRS', help='folders, with commas, to look for gin files in')
  add('--run_mode', default='train', metavar='MODE', help=f'one of {", ".join(RUN_MODES)} (default: train)')
  add('--dry_run', action='store_true', help='print parameters, mesh, shardings and expert capacity, and stop')
  add('--debug', action='store_true', help='show tracebacks and the log lines of libraries')
  add(
    '--profile', nargs='?', const='', metavar='FIRST:LAST[,...]', help='profile these steps (or five) for TensorBoard'
  )
  add('--compilation_cache_dir', metavar='DIR', help='where compiled programs are kept; off for nowhere')
  add('--tfds_data_dir', metavar='DIR', help='where data sets of TensorFlow Datasets are (TFDS_DATA_DIR)')
  for name in ('--alsologtostderr', '--logtostderr'):  # of T5X's command lines; it is so anyway
    add(name, action='store_true', help=argparse.SUPPRESS)
  add('--coordinator_address', metavar='HOST:PORT', help='process 0, on several hosts that are not Cloud TPU')
  add('--num_processes', '--process_count', type=int, metavar='N', help='number of processes, on several hosts')
  add('--process_id', '--process_index', type=int, metavar='I', help='which of them this is, from 0')
  add(
    '--join_timeout', '--initialization_timeout', type=float, default=300.0, metavar='SECONDS',
    help='how long the others are waited for (300)',
  )  # fmt: skip
  add('--topology', metavar='NAME', help='the TPU that --run_mode=plan compiles for, as v3:32x32')
  add('--json', metavar='FILE', help='where --run_mode=plan writes its numbers')
  add('--serialize', metavar='FILE', help='where --run_mode=plan keeps the compiled step')
  add('--version', action=_Version, nargs=0, help='print versions and stop')
  return parser


def split_gin_bindings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Separates `--gin.NAME=VALUE`, `--gin.NAME VALUE` and `--gin_bindings='NAME = VALUE'` from the flags.

  Returns:
    The other arguments, and the bindings as `NAME=VALUE`.

  Raises:
    ConfigError: a binding at the end has no value.
  """
  others, bindings = [], []
  arguments = iter(argv)
  for argument in arguments:
    flag, _, binding = argument.partition('=')
    if flag == '--gin_bindings':
      binding = binding or next(arguments, '')
      if not re.match(r'[\w./]+\s*=', binding):
        raise ConfigError(f'--gin_bindings is {binding!r}; write --gin_bindings=NAME=VALUE, or --gin.NAME=VALUE.')
      name, _, value = binding.partition('=')
      bindings.append(f'{name.strip()}={value.strip()}')
      continue
    if not argument.startswith('--gin.'):
      others.append(argument)
      continue
    binding = argument.removeprefix('--gin.')
    if '=' not in binding:
      value = next(arguments, '--')
      if value.startswith('--'):
        raise ConfigError(f'{argument} has no value; write {argument}=VALUE.')
      binding = f'{binding}={value}'
    bindings.append(binding)
  return others, bindings


def _plain_boolean(argument: str) -> str:
  """Returns `--dry_run` for absl's `--dry_run=true`, and nothing for `--nodry_run` and `--dry_run=false`."""
  match = re.fullmatch(
    r'--(no)?(dry_run|debug|alsologtostderr|logtostderr)(?:=(?:(true|t|1)|false|f|0))?', argument, re.I
  )
  if not match or (match[1] and '=' in argument):
    return argument
  return '' if match[1] or ('=' in argument and not match[3]) else f'--{match[2]}'


def _refuse(argument: str, flags: Sequence[str]) -> None:
  """Raises a `ConfigError` for an argument that is no flag, with what was probably meant."""
  name, _, value = argument.partition('=')
  if argument.endswith('.gin') and not argument.startswith('-'):
    hint = f'a gin file is given with --gin_file={argument}.'
  elif re.fullmatch(r'-*[A-Z][A-Z0-9_]*', name):
    hint = f'macros are set with --gin.{name.lstrip("-")}={value or "VALUE"}.'
  elif name.startswith('--') and (theirs := gin_t5x.FLAGS.get(name[2:])):
    hint = f'{theirs}.'
  elif name.startswith('--jax_'):
    hint = f'JAX reads {name[2:].upper()} from the environment.'
  else:
    near = difflib.get_close_matches('--' + name.lstrip('-'), flags, n=1)
    hint = f'did you mean {near[0]}?' if near else 'see --help.'
  raise ConfigError(f'unknown {"flag" if argument.startswith("-") else "argument"} {argument!r}: {hint}')


def parse_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Returns the flags, and the gin bindings as `NAME=VALUE`.

  Raises:
    ConfigError: a flag is unknown, wrong or lacks its value.
  """
  others, bindings = split_gin_bindings(argv)
  parser = make_parser()
  others = [argument for argument in map(_plain_boolean, others) if argument]
  flags, unknown = parser.parse_known_args(others)
  if theirs := gin_t5x.RUN_MODES.get(flags.run_mode):
    raise ConfigError(f'--run_mode is {flags.run_mode!r}, a mode of T5X; here {theirs}.')
  if flags.run_mode not in RUN_MODES:
    raise ConfigError(
      f'--run_mode is {flags.run_mode!r}; it must be one of {", ".join(RUN_MODES)}.{suggest(flags.run_mode, RUN_MODES)}'
    )
  if unknown:
    _refuse(unknown[0], list(parser._option_string_actions))
  for name in ('topology', 'json', 'serialize'):
    if getattr(flags, name) is not None and flags.run_mode != 'plan':
      raise ConfigError(f'--{name} is for --run_mode=plan, and the run mode is {flags.run_mode}.')
  for name in ('dry_run', 'profile'):
    if getattr(flags, name) and flags.run_mode in ('eval', 'infer', 'teacher'):
      raise ConfigError(f'--{name} is for --run_mode=train, and the run mode is {flags.run_mode}.')
  if flags.run_mode == 'plan' and flags.topology is None:
    raise ConfigError('--run_mode=plan needs the TPU to compile for: --topology=v3:32x32 for example.')
  if not flags.gin_file:
    raise ConfigError('no gin file was given; start with --gin_file=gin/examples/quickstart.gin.')
  profile_windows(flags.profile)
  launch.check_hosts(flags.coordinator_address, flags.num_processes, flags.process_id)
  return flags, bindings


def profile_windows(text: str | None) -> bool | list[tuple[int, int]]:
  """Returns what `--profile[=FIRST:LAST,...]` asks for: nothing, the usual steps, or windows of steps.

  Raises:
    ConfigError: it is nothing of the sort.
  """
  if not text:
    return text is not None
  windows = []
  for part in text.split(','):
    match = re.fullmatch(r'(\d+):(\d+)', part)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
      raise ConfigError(f'--profile is {text!r}; it must be first and last steps, as 100:105 or 100:105,5000:5005.')
    windows.append((int(match[1]), int(match[2])))
  return windows


def _plan(flags: argparse.Namespace, run: RunConfig) -> int:
  """Plans a run for a TPU that need not exist; what does not fit is an answer and no failure."""
  launch.quiet_logging(flags.debug)
  launch.compile_for_absent_tpus()
  from switch_jax import plan

  plan.check_outputs(flags.json, flags.serialize)
  result = plan.make_plan(run, flags.topology, flags.serialize, note=lambda text: print(f'{text} ...', flush=True))
  print(plan.describe(result, run))
  if flags.json:
    plan.write_json(result, flags.json)
  return 0


def _infer(flags: argparse.Namespace, bindings: Sequence[str], search_paths: Sequence[str]) -> int:
  """Evaluates checkpoints, or predicts for a file."""
  from switch_jax import gin_files

  root = {'eval': EvaluationConfig, 'infer': PredictionConfig}[flags.run_mode]
  config, _ = gin_files.load_run(flags.gin_file, bindings, search_paths, root=root)
  launch.quiet_logging(flags.debug)
  launch.use_compilation_cache(flags.compilation_cache_dir)
  launch.join_hosts(flags.coordinator_address, flags.num_processes, flags.process_id, flags.join_timeout)
  from switch_jax import inference
  from switch_jax.parallel.agreement import require_same_run

  require_same_run(config)
  return inference.evaluate_run(config) if flags.run_mode == 'eval' else inference.predict_file(config)


def _run(argv: Sequence[str]) -> int:
  flags, bindings = parse_flags(argv)
  if flags.tfds_data_dir:
    os.environ['TFDS_DATA_DIR'] = os.path.expanduser(flags.tfds_data_dir)  # before anything imports TensorFlow Datasets
  from switch_jax import gin_files

  search_paths = [path for path in flags.gin_search_paths.split(',') if path]
  if flags.run_mode == 'plan':
    return _plan(flags, gin_files.load_run(flags.gin_file, bindings, search_paths, _NOT_PLANNED)[0])
  if flags.run_mode in ('eval', 'infer'):
    return _infer(flags, bindings, search_paths)
  run, config_gin = gin_files.load_run(flags.gin_file, bindings, search_paths)

  launch.quiet_logging(flags.debug)
  launch.use_compilation_cache(flags.compilation_cache_dir)
  launch.join_hosts(flags.coordinator_address, flags.num_processes, flags.process_id, flags.join_timeout)
  if flags.dry_run:
    from switch_jax import training

    print(training.describe(run))
    return 0
  if flags.run_mode == 'teacher':
    from switch_jax import distillation
    from switch_jax.parallel.agreement import require_same_run

    require_same_run(run)
    return distillation.write_teacher_logits(run)
  return _train(flags, run, config_gin, argv)


def _train(flags: argparse.Namespace, run: RunConfig, config_gin: str, argv: Sequence[str]) -> int:
  """Trains, says in words what came of it, and returns the exit status."""
  import jax

  from switch_jax import training
  from switch_jax.monitoring.interruption import EXIT_CODES
  from switch_jax.monitoring.summary import summarize

  say = functools.partial(print, flush=True) if jax.process_index() == 0 else lambda text: None
  if (step := training.finished_step(run)) is not None:
    say(
      f'{run.model_dir} has all {run.train_steps:,} steps of this run (its newest checkpoint is step {step:,}); '
      'nothing to do.\nTrain on with a larger --gin.TRAIN_STEPS, or start anew with another --gin.MODEL_DIR.'
    )
    return 0
  result = training.train(run, config_gin=config_gin, profile=profile_windows(flags.profile))
  if result.reason in EXIT_CODES:
    saved = result.model_dir.step(result.step)
    say(f'{result.reason}: saved step {result.step:,} in {saved}; the same command continues from there.')
    return EXIT_CODES[result.reason]
  if result.facts:
    others, bindings = split_gin_bindings(argv)
    kept = [f'--gin.{binding}' for binding in bindings if not binding.startswith('TRAIN_STEPS=')]
    longer = [*others, *kept, f'--gin.TRAIN_STEPS={2 * run.train_steps}']
    next_command = shlex.join(['python', '-m', 'switch_jax.main', *longer])
    say('\n' + summarize(dataclasses.replace(result.facts, next_command=next_command)))
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line and returns the exit status: 0, 1 for an error, 130 after Ctrl-C, 143 after SIGTERM."""
  argv = sys.argv[1:] if argv is None else argv
  return launch.exit_status(_run, argv, interrupted='the same command goes on from the last checkpoint')


if __name__ == '__main__':
  launch.restart_with_huge_pages()
  launch.keep_freed_memory()
  sys.exit(main())
