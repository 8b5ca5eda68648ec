"""The console script: which command line a command is, what is refused, and what a shell completes."""

import importlib
import pathlib
import shutil
import subprocess
import sys

import pytest

from switch_jax import command, launch

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def called(monkeypatch):
  """Returns the list of what the modules of commands are called with."""
  made = []
  for module in {c.module for c in command.COMMANDS.values()}:
    monkeypatch.setattr(importlib.import_module(module), 'main', lambda argv, m=module: made.append((m, argv)) or 7)
  return made


@pytest.mark.parametrize(
  ('words', 'module', 'arguments'),
  [
    ('train --gin_file=a.gin', 'main', ['--gin_file=a.gin']),
    ('eval --gin.X 1', 'main', ['--run_mode=eval', '--gin.X', '1']),
    ('infer', 'main', ['--run_mode=infer']),
    ('plan --topology=v3:4x4', 'main', ['--run_mode=plan', '--topology=v3:4x4']),
    ('teacher', 'main', ['--run_mode=teacher']),
    ('convert --from=a:b', 'convert', ['--from=a:b']),
    ('sweep --out=d', 'sweep.__main__', ['--out=d']),
    ('report d', 'report.__main__', ['d']),
    ('verify d', 'checkpoints.__main__', ['verify', 'd']),
    ('verify --help', 'checkpoints.__main__', ['verify', '--help']),
    ('--version', 'main', ['--version']),
  ],
)
def test_a_command_is_a_command_line(called, words, module, arguments):
  assert command.main(words.split()) == 7
  assert called == [(f'switch_jax.{module}', arguments)]


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ('', 'switch_jax was given no command; it must be one of train, eval,'),
    ('trian', "'trian' is no command of switch_jax; it must be one of train, eval, infer, plan, "),
    ('trian', "Did you mean 'train'?"),
    ('eval --run_mode=train', '--run_mode is what the command eval says already'),
    ('completion fish', 'needs the name of the shell, bash or zsh.'),
  ],
)
def test_what_is_no_command(called, capsys, words, message):
  assert command.main(words.split()) == 1
  printed = capsys.readouterr()
  assert printed.err.startswith('error: ')
  assert printed.err.count('\n') == 1
  assert message in printed.err
  assert not called


def test_help(capsys):
  assert command.main(['--help']) == command.main(['eval', '--help']) == 0
  text = capsys.readouterr().out
  assert all(f'  {name} ' in text for name in command.COMMANDS)
  of_eval = text.partition('usage: switch_jax eval ')[2]
  assert '--gin_file' in of_eval
  for flag in ('--run_mode', '--topology', '--dry_run'):
    assert f'[{flag}' not in of_eval


def test_of_a_whole_process(called, monkeypatch, tmp_path):
  """The process is started anew for speed where `python -m switch_jax.main` is, and finds modules beside it as that."""
  prepared = []
  monkeypatch.setattr(launch, 'restart_with_huge_pages', lambda: prepared.append('restarted'))
  monkeypatch.setattr(launch, 'keep_freed_memory', lambda: prepared.append('kept'))
  monkeypatch.setattr(sys, 'path', ['/somewhere/bin', *sys.path])
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'argv', ['/somewhere/bin/switch_jax', 'report', 'd'])
  assert command.main() == 7
  assert not prepared
  monkeypatch.setattr(sys, 'argv', ['/somewhere/bin/switch_jax', 'train'])
  assert command.main() == 7
  assert prepared == ['restarted', 'kept']
  assert sys.path[:2] == [str(tmp_path)] * 2
  assert called[-1] == ('switch_jax.main', [])


CALLS = {
  'bash': 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _switch_jax; echo "${COMPREPLY[@]}"',
  # With what zsh has inside its line editor only; <FILES> is where it offers names of files.
  'zsh': """\
compset() { [[ "$PREFIX" == *=* ]]; }
compadd() { local all=("${@[$@[(i)--]+1,-1]}") found; found=(${(M)all:#$PREFIX*}); print -r -- $found; (( $#found )); }
_files() { echo '<FILES>'; }
words=("$@"); CURRENT=$#; PREFIX="$words[-1]"; _switch_jax""",
}


@pytest.fixture(params=CALLS)
def complete(request):
  """Returns a function of words to what a shell offers for the last one."""
  if not shutil.which(request.param):
    pytest.skip(f'there is no {request.param}')
  script = f'compdef() {{ :; }}\n{command.completion(request.param)}\n{CALLS[request.param]}'

  def call(*words):
    shell = [request.param, *(['-f'] if request.param == 'zsh' else []), '-c', script]
    result = subprocess.run([*shell, 'shell', 'switch_jax', *words], capture_output=True, text=True, check=False)
    assert not result.stderr
    return [word for word in result.stdout.split() if word != '<FILES>']  # bash offers them where there is nothing else

  return call


def test_completion(complete):
  assert complete('') == [*command.COMMANDS, 'completion']
  assert complete('re') == ['report']
  assert complete('train', '--dry') == ['--dry_run']
  assert not complete('eval', '--dry')
  assert complete('plan', '--top') == ['--topology=']
  assert complete('train', '--gin.TRAIN') == ['--gin.TRAIN_STEPS=']
  assert complete('convert', '--gin.config.MoeConfig.num_e') == ['--gin.config.MoeConfig.num_experts=']
  assert not complete('train', '--gin_file', '=', 'gi')  # left to the shell, which completes names of files
  assert not complete('train', '--gin_file=gi')
  assert complete('completion', '') == ['bash', 'zsh']


def test_start_imports_nothing_large():
  code = (
    'import sys; from switch_jax import command; assert command.main(["train", "--gin_file=none.gin"]) == 1; '
    'command.completion("bash"); print(sorted({"jax", "numpy", "tensorflow", "seqio", "orbax"} & set(sys.modules)))'
  )
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT)
  assert result.stdout == '[]\n'
