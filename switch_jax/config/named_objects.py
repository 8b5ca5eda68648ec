"""Objects of the user that a configuration names as `module:object`: schedules, optimizers, metrics."""

import contextlib
import importlib
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from switch_jax.config.validation import ConfigError, first_line, suggest

# Where code lies that is not the user's.
_OURS = str(Path(__file__).resolve().parent.parent)
_OF_OTHERS = (*{sysconfig.get_paths()[name] for name in ('stdlib', 'platstdlib', 'purelib', 'platlib')}, '<', _OURS)


def is_object_name(text: str) -> bool:
  """Whether a text is `module:object`, both parts perhaps with dots."""
  return bool(re.fullmatch(r'[^\W\d]\w*(\.\w+)*:[^\W\d]\w*(\.\w+)*', text))


def known_or_object(known: Sequence[str], value: str) -> str:
  """Returns the rule for a field that names one of ours or an object of the user."""
  listed = ', '.join(repr(name) for name in known)
  return f"it must be one of {listed}, or a function of your own as 'module:function'.{suggest(value, known)}"


def load_object(name: str, field: str) -> Callable[..., Any]:
  """Imports a module and returns what the name says of it.

  Args:
    name: `module:object`.
    field: where the configuration names it, for messages.

  Raises:
    ConfigError: the module cannot be imported, has no such object, or the object cannot be called.
  """
  module, _, path = name.partition(':')
  with failing(f'{field} is {name!r}, whose module cannot be imported'):
    found: Any = importlib.import_module(module)
  for part in path.split('.'):
    if not hasattr(found, part):
      raise ConfigError(f'{field} is {name!r}, and there is no {path} in {module}.{suggest(part, dir(found))}')
    found = getattr(found, part)
  if not callable(found):
    raise ConfigError(f'{field} is {name!r}, which is {found!r}; name a function.')
  return found


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
  """Turns whatever the user's code raises inside into a `ConfigError`: `<what> (<the error and its line>)`."""
  try:
    yield
  except ConfigError:
    raise
  except (Exception, SystemExit) as error:
    own = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_OF_OTHERS)]
    where = f'; {Path(own[-1].filename).name}, line {own[-1].lineno}' if own else ''
    raise ConfigError(
      f'{what} ({type(error).__name__}: {first_line(error)}{where}); mend it there (--debug has the traceback).'
    ) from error
