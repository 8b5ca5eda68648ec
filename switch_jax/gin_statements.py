"""Reading gin: files and command-line bindings as one list of bindings, each with the place it comes from.

gin's own parser reads the language. Finding files, following includes and naming places is done here, so that a
mistake is reported with its file and line before gin evaluates anything, and no module but `switch_jax.config` is
ever imported because a gin file says so.
"""

import cmath
import dataclasses
import difflib
import os
import pathlib
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import switch_jax
from switch_jax import config, gin_t5x
from switch_jax.config import ConfigError, suggest

try:
  from gin import config_parser
except ImportError as error:
  # Without gin-config the folder gin/ of a checkout is importable as an empty namespace.
  raise ConfigError(
    f'gin-config cannot be imported ({error}); the command line needs it: run pip install gin-config==0.5.0.'
  ) from None

HEADER = 'from __gin__ import dynamic_registration\nfrom switch_jax import config\n'

CLASSES = {
  name: cls
  for name, cls in vars(config).items()
  if dataclasses.is_dataclass(cls) and issubclass(cls, config.Checked) and cls is not config.Checked
}


@dataclasses.dataclass(frozen=True)
class Macro:
  """`%NAME` in a value."""

  name: str

  def __repr__(self):
    return f'%{self.name}'


@dataclasses.dataclass(frozen=True)
class Reference:
  """`@scope/config.Class()` in a value."""

  name: str
  evaluate: bool

  def __repr__(self):
    return f'@{self.name}' + '()' * self.evaluate


@dataclasses.dataclass(frozen=True)
class Binding:
  """One `NAME = value` or `config.Class.field = value`.

  Attributes:
    scope: gin's scope, mostly empty.
    owner: the configuration class; empty for a macro.
    name: the field, or the macro.
    value: Python literals, `Macro` and `Reference`.
    place: where it stands, for people: `gin/runs/pretrain.gin line 7` or `--gin.TRAIN_STEPS=10`.
    file: the file it stands in; None for the command line.
  """

  scope: str
  owner: str
  name: str
  value: Any
  place: str
  file: pathlib.Path | None

  @property
  def key(self) -> tuple[str, str, str]:
    """What is bound; a later binding of the same key wins."""
    return self.scope, self.owner, self.name

  @property
  def target(self) -> str:
    """What is bound, as gin writes it."""
    scope = f'{self.scope}/' if self.scope else ''
    return f'{scope}config.{self.owner}.{self.name}' if self.owner else self.name


def leaves(value: Any) -> Iterator[Any]:
  """Yields everything in a value that is no container."""
  if isinstance(value, dict):
    for key, item in value.items():
      yield from leaves(key)
      yield from leaves(item)
  elif isinstance(value, list | tuple):
    for item in value:
      yield from leaves(item)
  else:
    yield value


def _replace_leaves(value: Any, replace: Callable[[Any], Any]) -> Any:
  if isinstance(value, dict):
    return {_replace_leaves(k, replace): _replace_leaves(v, replace) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(_replace_leaves(item, replace) for item in value)
  return replace(value)


def library_root() -> pathlib.Path | None:
  """Returns the folder that holds the `gin/` that came with this package, or None if it came without.

  It lies inside the package when installed from a wheel, and beside it in a checkout or an editable installation.
  """
  package = pathlib.Path(switch_jax.__file__).resolve().parent
  return next((root for root in (package / 'share', package.parent) if (root / 'gin' / 'examples').is_dir()), None)


def search_roots(search_paths: Sequence[str] = ()) -> list[pathlib.Path]:
  """Returns the folders that gin files are looked for in, in order: the working directory, the given ones, our own.

  Raises:
    ConfigError: one of `search_paths` is no folder.
  """
  for path in search_paths:
    if not os.path.isdir(os.path.expanduser(path)):
      raise ConfigError(f'--gin_search_paths names {path!r}, which is no folder; give existing folders, with commas.')
  roots = [pathlib.Path()] + [pathlib.Path(path).expanduser() for path in search_paths]
  if library := library_root():
    roots += [library, library / 'gin']
  return roots


def find_file(name: str, roots: Sequence[pathlib.Path], asked_by: str) -> pathlib.Path:
  """Returns the first file of that name.

  Args:
    name: absolute, or relative to one of the roots.
    roots: where to look, in order.
    asked_by: the flag or the line that names the file, for the message.

  Raises:
    ConfigError: there is none, or it is a folder.
  """
  if '://' in name:
    raise ConfigError(f'{asked_by}: {name!r} is not on this disk; copy gin files here first.')
  relative = pathlib.Path(name).expanduser()
  paths = [root / relative for root in roots]
  for path in paths:
    if path.is_file():
      return path
  for path in paths:
    if path.is_dir():
      near = ', '.join(repr(str(relative / p.name)) for p in sorted(path.glob('*.gin'))) or 'there is none in it'
      raise ConfigError(f'{asked_by}: {name!r} is a folder; name one gin file ({near}).')
  beside = {p.name: str(relative.parent / p.name) for path in paths for p in sorted(path.parent.glob('*.gin'))}
  library = library_root()
  shipped = {p.name: str(p.relative_to(library)) for p in sorted(library.glob('gin/**/*.gin'))} if library else {}
  hint = ''
  for known in (beside, shipped):
    if not hint and (near := difflib.get_close_matches(relative.name, known, n=1)):
      hint = f' Did you mean {known[near[0]]!r}?'
  if not hint and beside:
    hint = f' In that folder are: {", ".join(list(beside.values())[:12])}.'
  where = ', '.join(dict.fromkeys(str(root.resolve()) for root in roots))
  if theirs := gin_t5x.file_hint(name):
    hint = f' That is a file of T5X; here it is {theirs}.'
  raise ConfigError(f'{asked_by}: there is no gin file {name!r}; looked in {where}.{hint}')


class _Delegate(config_parser.ParserDelegate):
  """Makes gin's parser return references as data in place of looking them up."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(scoped_configurable_name, evaluate)

  def macro(self, macro_name):
    return Macro(macro_name)


def _parse(text: str, name: str) -> Iterator[Any]:
  """Yields gin's statements. Raises a `ConfigError` with the line where the text is not gin."""
  try:
    yield from config_parser.ConfigParser(text, _Delegate())
  except tokenize.TokenError as error:
    message, (line, _) = error.args
    raise ConfigError(f'{name} line {line}: {message}; a bracket or a quote is not closed.') from None
  except SyntaxError as error:
    message = error.msg or ''
    if token := re.search(r"Failed to parse token '(.*)'", message, re.DOTALL):
      message = f'{token[1]!r} is no value'
    elif message.startswith('Unable to parse value'):
      message = 'there is no value that gin can read'
    shown = f' in `{error.text.strip()}`' if error.text and error.text.strip() else ''
    raise ConfigError(
      f'{name} line {error.lineno}: {message.rstrip(".")}{shown}; a line is NAME = value, the value a Python '
      "literal (text in quotes: '/some/dir'), a %MACRO or @config.SomeClass()."
    ) from None


def gin_literal(name: str, text: str) -> str:
  """Returns what was given on the command line as something gin can read: itself, or itself as a string.

  A shell takes quotes away, so `--gin.MODEL_DIR=/some/dir` must mean the string. `~/` is expanded, as the shell
  would have done at the beginning of a word.

  Raises:
    ConfigError: it begins like a list, a tuple or a dict but is none.
  """
  try:
    statements = list(config_parser.ConfigParser(f'x = {text}', _Delegate()))
    if len(statements) == 1:
      return text
  except Exception:  # Whatever the tokenizer or the parser cannot read is text.
    pass
  if text[:1] in ('{', '[', '('):
    raise ConfigError(
      f'--gin.{name}={text} is no Python literal; the shell may have taken its quotes, so put quotes around all '
      f"of it, as in \"--gin.TASK_FEATURE_LENGTHS={{'inputs': 512, 'targets': 114}}\"; for a text that begins "
      f'with {text[0]!r} write "--gin.{name}=\'...\'".'
    )
  return repr(os.path.expanduser(text) if text.startswith('~') else text)


class Reader:
  """Collects bindings in the order in which they apply: files as given, includes where they stand, then flags."""

  def __init__(self, roots: Sequence[pathlib.Path]):
    self.bindings: list[Binding] = []
    self._roots = roots
    self._open: list[pathlib.Path] = []

  def read_file(self, name: str, asked_by: str) -> None:
    """Reads a gin file and, where they stand, the files that it includes."""
    path = find_file(name, self._roots, asked_by)
    if path.resolve() in self._open:
      raise ConfigError(f'{asked_by} includes {name!r}, which is being read already; a file cannot include itself.')
    try:
      text = path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
      raise ConfigError(f'{asked_by}: {path} cannot be read as text: {error}.') from None
    self._open.append(path.resolve())
    # The names under which this file can mention the configuration classes, as `config` after the usual import.
    prefixes: set[str] = set()
    for statement in _parse(text, name):
      self._take(statement, name, prefixes)
    self._open.pop()

  def read_flag(self, binding: str) -> None:
    """Reads `NAME=VALUE` as given in `--gin.NAME=VALUE`."""
    name, equals, text = binding.partition('=')
    name = name.strip()
    if not equals or not re.fullmatch(r'[A-Za-z_][\w./]*', name):
      raise ConfigError(f'--gin.{binding} is no binding; write --gin.NAME=VALUE, as in --gin.TRAIN_STEPS=1000.')
    place = f'--gin.{name}={text}'
    for statement in _parse(f'{name} = {gin_literal(name, text)}', f'--gin.{name}'):
      self._bind(statement, place, {'config'}, None)

  def _take(self, statement: Any, name: str, prefixes: set[str]) -> None:
    place = f'{name} line {statement.location.line_num}'
    if isinstance(statement, config_parser.ImportStatement):
      self._import(statement, place, prefixes)
    elif isinstance(statement, config_parser.IncludeStatement):
      self._include(statement.filename, place)
    elif isinstance(statement, config_parser.BlockDeclaration):
      _find_class(statement.selector, place, prefixes)
    else:
      self._bind(statement, place, prefixes, self._open[-1])

  def _import(self, statement: Any, place: str, prefixes: set[str]) -> None:
    if statement.module == '__gin__.dynamic_registration':
      return
    if gin_t5x.is_theirs(statement.module):
      raise ConfigError(
        f'{place} imports {statement.module!r}, so it is made for T5X; here a run is a file of gin/models/ with one of '
        'gin/runs/, and docs/coming_from_t5x.md has what its settings are called.'
      )
    if statement.module != 'switch_jax.config':
      raise ConfigError(
        f'{place} imports {statement.module!r}; a gin file may only say `from switch_jax import config`, so that '
        'nothing runs before the configuration has been checked. To register your tasks name their module: '
        f"config.DataConfig.task_module = '{statement.module}'."
      )
    prefixes.add(statement.bound_name() if statement.is_from or statement.alias else statement.module)

  def _include(self, filename: str, place: str) -> None:
    start = len(self.bindings)
    self.read_file(filename, place)
    mine = {b.key: b for b in self.bindings[:start] if b.file == self._open[-1]}
    for binding in self.bindings[start:]:
      if earlier := mine.get(binding.key):
        raise ConfigError(
          f'{place} includes {filename!r}, which sets {binding.target} again after {earlier.place} has set it; the '
          'later one would win: put includes first.'
        )

  def _bind(self, statement: Any, place: str, prefixes: Iterable[str], file: pathlib.Path | None) -> None:
    scope, selector, field = statement.scope, statement.selector, statement.arg_name
    if not field:  # A macro; gin allows slashes in its name.
      owner, field, scope = '', f'{scope}/{selector}' if scope else selector, ''
    else:
      if theirs := gin_t5x.field_hint(scope, selector, field):
        raise ConfigError(f'{place}: {selector}.{field} is a setting of T5X; here it is {theirs}.')
      owner = _find_class(selector, place, prefixes)
      _check_field(owner, field, place)

    def resolve(leaf):
      if isinstance(leaf, float | complex) and not cmath.isfinite(leaf):
        raise ConfigError(f'{place} is {leaf!r} in Python; give a number that a float can hold.')
      if not isinstance(leaf, Reference):
        return leaf
      scopes, _, name = leaf.name.rpartition('/')
      name = f'config.{_find_class(name, place, prefixes)}'
      if not leaf.evaluate:
        raise ConfigError(f'{place}: @{leaf.name} hands over the class itself; write @{leaf.name}() for an instance.')
      return Reference(f'{scopes}/{name}' if scopes else name, True)

    value = _replace_leaves(statement.value, resolve)
    self.bindings.append(Binding(scope, owner, field, value, place, file))


def _find_class(selector: str, place: str, prefixes: Iterable[str]) -> str:
  """Returns the name of the configuration class that a file calls `selector`."""
  prefix, _, name = selector.rpartition('.')
  if prefix in prefixes and name in CLASSES:
    return name
  if prefix in prefixes:
    raise ConfigError(f'{place}: there is no configuration class {selector!r}.{suggest(name, CLASSES)}')
  if prefix == 'config' and name in CLASSES:
    raise ConfigError(
      f'{place} names {selector!r} without importing it; begin the file with the two lines '
      '`from __gin__ import dynamic_registration` and `from switch_jax import config`.'
    )
  near = difflib.get_close_matches(name, CLASSES, n=1)
  hint = f'; did you mean config.{near[0]}?' if near else ': ' + ', '.join(f'config.{c}' for c in sorted(CLASSES)) + '.'
  raise ConfigError(f'{place}: {selector!r} is no configuration class; gin sets fields of these{hint}')


def _check_field(owner: str, field: str, place: str) -> None:
  fields = {name: [f.name for f in dataclasses.fields(cls)] for name, cls in CLASSES.items()}
  if field in fields[owner]:
    return
  hint = suggest(field, fields[owner])
  if homes := [name for name, known in fields.items() if field in known]:
    hint = f' Did you mean config.{homes[0]}.{field}?'
  raise ConfigError(f'{place}: config.{owner} has no field {field!r}.{hint}')
