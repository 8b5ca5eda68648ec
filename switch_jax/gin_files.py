"""gin files and `--gin.NAME=VALUE` bindings to one `RunConfig`; from there on gin is gone.

Bindings are read and checked with their places first (`gin_statements`). What is left of them, each key once, is
then evaluated by gin, which registers the configuration classes by dynamic registration and calls them.
"""

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gin

from switch_jax import gin_statements, gin_t5x
from switch_jax.config import Checked, ConfigError, RunConfig, suggest
from switch_jax.gin_statements import Binding, Macro, Reference, leaves

# An example of each macro that shipped files leave to the user.
_EXAMPLES = {
  'MODEL_DIR': '/some/dir',
  'MIXTURE_OR_TASK_NAME': 'docstrings_span_corruption',
  'TASK_FEATURE_LENGTHS': "\"{'inputs': 512, 'targets': 114}\"",
  'TRAIN_STEPS': '1000',
  'TEXT_FILES': "'/some/dir/*.txt'",
  'TASK_FILES': "'/some/dir/*.csv'",
  'INPUT_FILE': 'inputs.jsonl',
  'OUTPUT_FILE': 'predictions.jsonl',
}

# What to include for each class that describes a run.
_RUN_FILES = {
  'RunConfig': 'gin/runs/pretrain.gin',
  'EvaluationConfig': 'gin/runs/eval.gin',
  'PredictionConfig': 'gin/runs/infer.gin',
}

_Effective = Mapping[tuple[str, str, str], Binding]


def load_run(
  gin_files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
  placeholders: Mapping[str, Any] | None = None,
  root: type[Checked] = RunConfig,
) -> tuple[Any, str]:
  """Builds the run that gin files and bindings describe.

  Args:
    gin_files: files, the later over the earlier. A relative one is looked for in the working directory, then in
      `search_paths`, then in the files that came with the package.
    bindings: `NAME=VALUE` of each `--gin.NAME=VALUE`, over all files. A value that gin cannot read is a string.
    search_paths: more folders to look for files in.
    placeholders: values of macros that are asked for and set nowhere, where nothing depends on them.
    root: the class that is described: `RunConfig`, `EvaluationConfig`, `PredictionConfig` or `SweepConfig`.

  Returns:
    A `root`, and the operative configuration as gin text: every value that was used, readable as a gin file again.

  Raises:
    ConfigError: anything is missing, misspelt, unused or of a wrong type or value; the message says where.
  """
  reader = gin_statements.Reader(gin_statements.search_roots(search_paths))
  for name in gin_files:
    reader.read_file(name, f'--gin_file={name}')
  for binding in bindings:
    reader.read_flag(binding)
  wanted = {name for b in reader.bindings for name in _macros_in(b.value)}
  wanted -= {b.name for b in reader.bindings if not b.owner}
  for name in wanted & set(placeholders or ()):
    reader.bindings.append(Binding('', '', name, placeholders[name], 'a placeholder', pathlib.Path()))
  effective = {binding.key: binding for binding in reader.bindings}
  _check_macros(effective, reader.bindings)
  run, text, used = _evaluate(effective, root)
  _check_unused(effective, reader.bindings, used, root)
  return run, text


def _macros_in(value: Any) -> list[str]:
  return [leaf.name for leaf in leaves(value) if isinstance(leaf, Macro)]


def _join(items: Iterable[str]) -> str:
  *most, last = items
  return f'{", ".join(most)} and {last}' if most else last


def _check_macros(effective: _Effective, history: Sequence[Binding]) -> None:
  """Raises a `ConfigError` if a macro that is used has no value, or only itself."""
  macros = {b.name: b for b in effective.values() if not b.owner}
  missing: dict[str, str] = {}  # Name to where it is used.
  for binding in effective.values():
    for name in _macros_in(binding.value):
      if name == 'gin.REQUIRED':
        missing[binding.target] = binding.place
      elif name not in macros:
        missing.setdefault(name, binding.place)
  if missing:
    used = {name for b in history for name in _macros_in(b.value)}
    stray = [name for name in macros if name not in used]
    # Those who come from T5X lack a macro because they gave theirs.
    hints = [
      f'{macros[name].place} changes nothing: here it is {gin_t5x.MACROS[name]}.'
      for name in stray
      if name in gin_t5x.MACROS and not macros[name].file
    ]
    misspelt = [name for name in stray if name not in gin_t5x.MACROS]
    for name, place in missing.items():
      if near := difflib.get_close_matches(name, misspelt, n=1, cutoff=0.75):
        hints.append(f'%{name} ({place}) has no value, but {macros[near[0]].place} is used nowhere: write {name}.')
      elif name in macros or name in _EXAMPLES:  # the user is to give it, whatever it resembles
        continue
      elif near := difflib.get_close_matches(name, set(macros) - set(stray), 1, 0.75):
        hints.append(f'%{name} ({place}) has no value; did you mean %{near[0]}?')
    if hints:
      raise ConfigError(' '.join(hints))
    flags = ' '.join(f'--gin.{name}={_EXAMPLES.get(name, "VALUE")}' for name in missing)
    places = _join(dict.fromkeys(missing.values()))
    verb, them = ('has', 'it') if len(missing) == 1 else ('have', 'them')
    raise ConfigError(f'{_join(missing)} {verb} no value ({places}); set {them} with {flags}.')
  for name in macros:
    chain = [name]
    while following := _macros_in(macros[chain[-1]].value):
      if following[0] in chain:
        circle = ' = '.join(f'%{n}' for n in (*chain, following[0]))
        raise ConfigError(f'{macros[chain[-1]].place}: {circle} goes in a circle; give one of them a value.')
      chain.append(following[0])


def _evaluate(effective: _Effective, root: type[Checked]) -> tuple[Checked, str, set[tuple[str, str]]]:
  """Lets gin build the run.

  Returns:
    The run; the operative configuration; and the (scope, class) and (macro, '') pairs that were evaluated.
  """
  if not any(b.owner == root.__name__ for b in effective.values()):
    file = _RUN_FILES.get(root.__name__)
    if file is None:
      raise ConfigError(f'nothing is bound of config.{root.__name__}; see the example in its documentation.')
    raise ConfigError(f'no gin file describes the run (config.{root.__name__}); include {file!r}.')
  lines = [f'{b.target} = {b.value!r}' for b in effective.values()]
  gin.clear_config()
  try:
    gin.parse_config(gin_statements.HEADER + '\n'.join(lines))
    run = gin.get_configurable(root)()
    text = gin.operative_config_str(max_line_length=110)
    used = set()
    # A private name of gin 0.5.0 (setup.py pins it): the only record of which scopes were entered.
    for scope, selector in gin.config._OPERATIVE_CONFIG:
      used.add((scope, '') if selector == 'gin.macro' else (scope, selector.rpartition('.')[2]))
    return run, text, used
  except ConfigError as error:
    # gin appends where it was; our own sentence is what stands before that.
    message = str(error).partition('\n  In call to configurable')[0]
    raise ConfigError(message + _blame(message, effective)) from None
  except RecursionError:
    raise ConfigError('the classes refer to each other in a circle (@config.A() in config.A); break it.') from None
  except TypeError as error:
    missing = re.search(r'(\w+)\.__init__\(\) missing \d+ required keyword-only arguments?: (.*)', str(error))
    if not missing:
      raise
    names = re.findall(r"'(\w+)'", missing[2])
    raise ConfigError(
      f'config.{missing[1]} needs {_join(names)}; include a file that sets them (gin/models/, gin/runs/), or bind '
      f'config.{missing[1]}.{names[0]} and so on.'
    ) from None
  finally:
    gin.clear_config()


def _blame(message: str, effective: _Effective) -> str:
  """Returns where the field at the beginning of a message got its value, followed through macros."""
  field = re.match(r'(\w+)\.(\w+) is ', message)
  bound = [b for b in effective.values() if field and (b.owner, b.name) == (field[1], field[2])]
  if len(bound) != 1:
    return ''
  binding = bound[0]
  while isinstance(binding.value, Macro):
    binding = effective['', '', binding.value.name]
  return f' (Set by {binding.place}.)'


def _check_unused(
  effective: _Effective, history: Sequence[Binding], used: set[tuple[str, str]], root: type[Checked]
) -> None:
  """Raises a `ConfigError` for what was bound and changes nothing.

  A name that nothing ever mentions is misspelt. One that is mentioned but bypassed (another binding took the place
  of the one that mentions it, or its class is not part of this model) is fine in a file, since including a file and
  replacing parts of it is what files are for; on the command line it is an error all the same.
  """
  mentioned: dict[tuple[str, str], Binding] = {}  # (macro, '') or ('', class) to who mentions it.
  for binding in history:
    for leaf in leaves(binding.value):
      if isinstance(leaf, Macro):
        mentioned[leaf.name, ''] = binding
      elif isinstance(leaf, Reference):
        mentioned['', leaf.name.rpartition('.')[2]] = binding
  mentioned['', root.__name__] = history[-1]
  for binding in effective.values():
    if binding.owner:
      consumed = any(_covers(binding.scope, scope) and owner == binding.owner for scope, owner in used)
      mention = mentioned.get(('', binding.owner))
    else:
      consumed = (binding.name, '') in used
      mention = mentioned.get((binding.name, ''))
    if consumed or (mention and binding.file):
      continue
    raise ConfigError(f'{binding.place} changes nothing: {_why_unused(binding, mention, effective, mentioned)}')


def _covers(scope: str, entered: str) -> bool:
  """Whether a binding in `scope` holds for a call that entered the scopes `entered`."""
  return not scope or entered == scope or entered.startswith(f'{scope}/')


def _why_unused(
  binding: Binding, mention: Binding | None, effective: _Effective, mentioned: Mapping[tuple[str, str], Binding]
) -> str:
  """Returns why a binding is not used, and the remedy."""
  name = binding.name
  if binding.scope:
    return f'nothing refers to @{binding.scope}/config.{binding.owner}().'
  if mention:
    winner = effective[mention.key]
    if winner is not mention:
      return f'{winner.place} sets {winner.target} without it; change that one.'
    if mention.owner:
      return f'this run has no config.{mention.owner}.'
    return f'nothing uses {mention.name} either.'
  if binding.owner:
    homes = [
      f'config.{owner}.{f.name} = @config.{binding.owner}()'
      for owner, cls in gin_statements.CLASSES.items()
      for f in dataclasses.fields(cls)
      if binding.owner in str(f.type)
    ]
    return f'nothing refers to config.{binding.owner}; write {" or ".join(homes)}.'
  known = [macro for macro, owner in mentioned if not owner]
  if name in gin_t5x.MACROS:
    return f'nothing uses the name {name}; here it is {gin_t5x.MACROS[name]}.'
  if hint := suggest(name, known):
    return f'nothing uses the name {name}.{hint}'
  fields = [f'config.{o}.{f.name}' for o, cls in gin_statements.CLASSES.items() for f in dataclasses.fields(cls)]
  if homes := [field for field in fields if field.endswith(f'.{name.lower()}')]:
    return f'nothing uses the name {name}; write {_join(homes)}.'
  if not known:
    return f'nothing uses the name {name}, or any other; remove it.'
  return f'nothing uses the name {name}; used are {_join(sorted(known))}.'
