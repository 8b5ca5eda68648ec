"""The console script `switch_jax`: one name for the command lines that `python -m` runs too.

Only the module of the command is imported. `switch_jax completion bash` prints what completes commands, flags and gin
names in a shell.
"""

import argparse
import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence

from switch_jax import config as configuration
from switch_jax import launch
from switch_jax.config import ConfigError, suggest

_MAIN = 'switch_jax.main'
_OF_TRAINING, _OF_PLANS = ('--dry_run', '--profile'), ('--topology', '--json', '--serialize')


@dataclasses.dataclass(frozen=True)
class Command:
  """A command: a module's command line, perhaps with arguments.

  Attributes:
    does: what for, in a few words.
    module: has `main(argv)`, and `make_parser()` unless it is `verify`.
    arguments: stand before those of the user.
    without: the module's flags that are for other commands.
  """

  does: str
  module: str = _MAIN
  arguments: tuple[str, ...] = ()
  without: tuple[str, ...] = ()


def _mode(name: str, does: str, *without: str) -> Command:
  return Command(does, arguments=(f'--run_mode={name}',), without=('--run_mode', *without))


COMMANDS = {
  'train': Command('train, or go on training', without=('--run_mode', *_OF_PLANS)),
  'eval': _mode('eval', 'the metrics of a task, for the checkpoints of a run', *_OF_TRAINING, *_OF_PLANS),
  'infer': _mode('infer', 'predict for a file of texts', *_OF_TRAINING, *_OF_PLANS),
  'plan': _mode('plan', 'compile a training step for a TPU that is not there: memory, time', *_OF_TRAINING),
  'teacher': _mode('teacher', "write a teacher's logits for distillation", *_OF_TRAINING, *_OF_PLANS),
  'convert': Command('turn checkpoints into those of T5X or Hugging Face, and back', 'switch_jax.convert'),
  'sweep': Command('train with many values of some settings', 'switch_jax.sweep.__main__'),
  'report': Command('one HTML file about runs', 'switch_jax.report.__main__'),
  'verify': Command('compare checkpoints with their checksums', 'switch_jax.checkpoints.__main__', ('verify',)),
}
# What is known at a word: its number, the command, what stands there of it. For both shells.
_KNOWN = """\
_switch_jax_known() {{
  known=''
  if [[ $1 == 1 ]]; then
    known='{commands} completion'
  elif [[ "$3" == --gin.* ]]; then
    known='{gin}'
  else
    case "$2" in
{flags}
      completion) known='{shells}' ;;
    esac
  fi
}}
"""
# Values are completed as names of files. Bash makes a word of each =, zsh does not.
_OFFER = {
  'bash': """\
_switch_jax() {
  local current="${COMP_WORDS[COMP_CWORD]}" known
  COMPREPLY=()
  [[ "$current" == *=* || "${COMP_WORDS[COMP_CWORD-1]}" == = ]] && return
  _switch_jax_known "$COMP_CWORD" "${COMP_WORDS[1]}" "$current"
  COMPREPLY=($(compgen -W "$known" -- "$current"))
  [[ "${COMPREPLY[0]-}" == *= || "$current" == --gin* ]] && compopt -o nospace 2>/dev/null
  return 0
}
complete -o default -F _switch_jax switch_jax
""",
  'zsh': """\
_switch_jax() {
  local known found=1
  compset -P '*=' && { _files; return; }
  _switch_jax_known $((CURRENT - 1)) "$words[2]" "$PREFIX"
  compadd -S '' -- ${(M)${=known}:#*[=.]} && found=0
  compadd -- ${${=known}:#*[=.]} && found=0
  (( found )) && _files
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _switch_jax switch_jax
""",
}


def _parser_of(name: str) -> argparse.ArgumentParser:
  """Returns the parser of a command, without the flags that are for others."""
  command = COMMANDS[name]
  parser = importlib.import_module(command.module).make_parser()
  parser.prog = f'switch_jax {name}'
  for action in parser._actions:
    if set(action.option_strings) & set(command.without):
      action.help = argparse.SUPPRESS
  return parser


def _flags_of(name: str) -> Iterator[str]:
  """Yields the flags of a command, with `=` where a value follows."""
  for action in _parser_of(name)._actions if name != 'verify' else ():
    for flag in action.option_strings if action.help != argparse.SUPPRESS else ():
      if flag.startswith('--'):
        yield flag if action.nargs == 0 else f'{flag}='
  if COMMANDS[name].module not in ('switch_jax.report.__main__', 'switch_jax.checkpoints.__main__'):
    yield '--gin.'


def _gin_names() -> list[str]:
  """Returns `--gin.NAME=` for the macros of the gin files and for all fields."""
  from switch_jax.gin_statements import library_root

  root = library_root()
  texts = [path.read_text(encoding='utf-8') for path in (root / 'gin').rglob('*.gin')] if root else []
  macros = {name for text in texts for name in re.findall(r'%([A-Z][A-Z0-9_]*)', text)}
  classes = [getattr(configuration, name) for name in configuration.__all__ if name.endswith('Config')]
  fields = [f'config.{cls.__name__}.{field.name}' for cls in classes for field in dataclasses.fields(cls)]
  return [f'--gin.{name}=' for name in (*sorted(macros), *fields)]


def completion(shell: str) -> str:
  """Returns the script that completes commands, flags and gin names.

  Args:
    shell: `bash` or `zsh`.
  """
  flags = [f"      {name}) known='{' '.join(_flags_of(name))}' ;;" for name in COMMANDS]
  known = _KNOWN.format(
    commands=' '.join(COMMANDS), flags='\n'.join(flags), gin=' '.join(_gin_names()), shells=' '.join(_OFFER)
  )
  return known + _OFFER[shell]


def _usage() -> str:
  """Returns what `switch_jax --help` prints."""
  lines = [f'  {name:<10}  {command.does}' for name, command in COMMANDS.items()]
  return '\n'.join(
    [
      'usage: switch_jax COMMAND [FLAGS]',
      '',
      *lines,
      '  completion  print the completion for bash or zsh: eval "$(switch_jax completion bash)"',
      '',
      'switch_jax COMMAND --help has the flags. A checkout that is not installed has python -m switch_jax.main.',
    ]
  )


def _check(argv: Sequence[str]) -> None:
  """Raises a `ConfigError` unless the arguments begin with a command, and leave its mode to it."""
  name, known = argv[0] if argv else '', (*COMMANDS, 'completion')
  if name not in known:
    got = f'{name!r} is no command of switch_jax' if argv else 'switch_jax was given no command'
    raise ConfigError(f'{got}; it must be one of {", ".join(known)}.{suggest(name, known)}')
  if name == 'completion' and (len(argv) != 2 or argv[1] not in _OFFER):
    raise ConfigError(f'switch_jax completion needs the name of the shell, {" or ".join(_OFFER)}.')
  if name in COMMANDS and COMMANDS[name].module == _MAIN:
    for argument in argv[1:]:
      if argument.partition('=')[0] == '--run_mode':
        raise ConfigError(f'--run_mode is what the command {name} says already; leave it out, or use another command.')


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command and returns its exit status.

  Args:
    argv: the command and its arguments; None takes those of the process, which may then be started anew (`launch`).
  """
  is_whole_process, argv = argv is None, sys.argv[1:] if argv is None else argv
  if argv and argv[0] in ('-h', '--help', 'help'):
    print(_usage())
    return 0
  if argv and argv[0] == '--version':
    return importlib.import_module(_MAIN).main(argv)
  try:
    _check(argv)
  except ConfigError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  name, *arguments = argv
  if name == 'completion':
    print(completion(arguments[0]), end='')
    return 0
  if name != 'verify' and {'-h', '--help'} & set(arguments):
    _parser_of(name).print_help()
    return 0
  command = COMMANDS[name]
  if is_whole_process:
    if command.module == _MAIN:
      launch.restart_with_huge_pages()
      launch.keep_freed_memory()
    if not sys.flags.safe_path:
      sys.path.insert(0, os.getcwd())  # as `python -m` does: the user's task modules are found
  return importlib.import_module(command.module).main([*command.arguments, *arguments])


if __name__ == '__main__':
  sys.exit(main())
