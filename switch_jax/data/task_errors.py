"""What the code of a task raises, as one line that names the task and the place, and no bug of ours.

Tasks, mixtures and their modules are the user's: sources, preprocessors, rates, metrics. TensorFlow wraps what they
raise in its own errors, with the traceback in the message; what is shown is the line that the user's code said.
"""

import contextlib
import copy
import re
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from switch_jax.config import ConfigError
from switch_jax.data.quiet_tensorflow import seqio, tf

_OURS = str(Path(__file__).resolve().parent.parent)
_OF_OTHERS = (*{sysconfig.get_paths()[name] for name in ('stdlib', 'platstdlib', 'purelib', 'platlib')}, '<', _OURS)
_RAISED = re.compile(r'^\s*((?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt|Iteration)\w*): (.*)$', re.MULTILINE)
# What TensorFlow puts around the message of an operation: where in its own graph it stood.
_OF_TENSORFLOW = re.compile(
  r'\[\[\{\{.*?\]\]|\{\{[^}]*\}\} ?|\[Op:\w+\]( name: *)?|'
  r'Error in user-defined function passed to .*? with iterator: \S+: '
)
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')
_LONGEST = 300
# What the code of a user may raise; `sys.exit()` in it is an error like others, and Ctrl-C is none.
OF_USERS = (Exception, SystemExit)
# How long the task is looked for that made a mixture fail.
_SEARCH_SECONDS = 20.0


def explain(error: BaseException) -> str:
  """Returns in one line what an error says and where in the user's own code it was raised."""
  return ''.join(said_and_where(error))


def said_and_where(error: BaseException) -> tuple[str, str]:
  """Returns both parts of that line; the second is empty where none of the user's code is involved."""
  text = _OF_TENSORFLOW.sub('', str(error))
  name, said = type(error).__name__, text.strip()
  frames = [(frame.filename, frame.lineno, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
  if 'Traceback (most recent call last)' in text or text.startswith('in user code:'):
    # From Python that a graph calls, or that was traced into one: the error and its frames are in the message.
    frames += [(path, int(line), function) for path, line, function in _FRAME.findall(text)]
    if raised := _RAISED.findall(text):
      name, said = raised[-1][0].rpartition('.')[2], raised[-1][1]
  own = [frame for frame in frames if not frame[0].startswith(_OF_OTHERS) and '__autograph' not in frame[0]]
  of = f', in {own[-1][2]}' if own and own[-1][2] not in (None, 'None') else ''
  where = f' ({Path(own[-1][0]).name}, line {own[-1][1]}{of})' if own else ''
  said = ' '.join(said.split())
  said = said if len(said) <= _LONGEST else said[:_LONGEST] + '...'
  shown = said if said and name in ('ValueError', 'AssertionError') else ': '.join(filter(None, (name, said)))
  return shown.rstrip('.'), where


@contextlib.contextmanager
def failing(what: str, remedy: str) -> Iterator[None]:
  """Turns whatever is raised inside, but for a `ConfigError`, into one: `<what>: <the error>; <remedy>.`"""
  try:
    yield
  except ConfigError:
    raise
  except OF_USERS as error:
    raise ConfigError(f'{what}: {explain(error)}; {remedy} (--debug has the traceback).') from error


def reading_error(
  provider: seqio.Task | seqio.Mixture, split: str, read: Callable[[seqio.Task], tf.data.Dataset], error: BaseException
) -> ConfigError:
  """Returns what to raise where the examples of a task or mixture could not be read to their end.

  TensorFlow does not say which of a mixture's tasks it was: they are read one by one, for a while.

  Args:
    provider: the task or mixture.
    split: that was read.
    read: gives the examples of a task, from its first one.
    error: what was raised.
  """
  tasks = [task for task in seqio.get_subtasks(provider) if split in task.splits]
  who = f'the task {tasks[0].name}' if len(tasks) == 1 else f'a task of the mixture {provider.name}'
  for task in tasks if len(tasks) > 1 else ():
    ends = time.monotonic() + _SEARCH_SECONDS / len(tasks)
    try:
      for _ in read(task):
        if time.monotonic() > ends:
          break
    except OF_USERS as found:
      who, error = f'the task {task.name}', found
      break
  if isinstance(error, ConfigError):
    return error
  return ConfigError(
    f'{who} failed while its examples of the split {split!r} were read: {explain(error)}; mend its source or its '
    'preprocessors (--debug has the traceback).'
  )


def check_rates(mixture: seqio.Mixture, split: str) -> None:
  """Raises a `ConfigError` that names the task whose rate in a mixture cannot be computed, or is no rate."""
  for task in (task for task in mixture.tasks if split in task.splits):
    what = f'the rate of {task.name} in the mixture {mixture.name} cannot be computed'
    try:
      rate = mixture.get_rate(task)
    except ConfigError:
      raise
    except OF_USERS as error:
      if (uncounted := list(_uncounted(mixture, split))) and _would_have_rate(mixture, task):
        raise ConfigError(
          f'{what} ({explain(error)}): {", ".join(uncounted)} {"has" if len(uncounted) == 1 else "have"} no number of '
          f'examples. Give the source num_input_examples={{{split!r}: ...}}, or give the task a fixed rate in the '
          f"mixture, as ('{uncounted[0]}', 1.0), or read cached tasks, whose examples are counted (USE_CACHED_TASKS)."
        ) from error
      raise ConfigError(
        f'{what}: {explain(error)}; give it a rate function that can, or a number (--debug has the traceback).'
      ) from error
    if not 0 <= rate < float('inf'):
      raise ConfigError(
        f'the rate of {task.name} in the mixture {mixture.name} is {rate}; it must be 0 or greater, and finite.'
      )


def _uncounted(mixture: seqio.Mixture, split: str) -> Iterator[str]:
  """Yields the tasks of a mixture whose source does not know how many examples it has."""
  for task in mixture.tasks:
    try:
      if split in task.splits and task.num_input_examples(split) is None:
        yield task.name
    except OF_USERS:
      yield task.name


def _would_have_rate(mixture: seqio.Mixture, task: seqio.Task) -> bool:
  """Whether the rate of a task can be computed where its source knows a number of examples."""
  counted = copy.copy(task)
  counted.num_input_examples = lambda split: 1000
  try:
    mixture.get_rate(counted)
  except OF_USERS:
    return False
  return True


def check_features(provider: seqio.Task | seqio.Mixture, features: Mapping[str, seqio.Feature]) -> None:
  """Raises a `ConfigError` where tasks of a mixture differ in the vocabulary or dtype of a feature.

  Args:
    provider: a task, which cannot, or a mixture.
    features: those of its first task.
  """
  for task in seqio.get_subtasks(provider):
    for name in [name for name in ('inputs', 'targets') if name in features]:
      first, own = features[name], task.output_features[name]
      if own.vocabulary != first.vocabulary:
        others = seqio.get_subtasks(provider)[0].name
        raise ConfigError(
          f'the tasks of the mixture {provider.name} have different vocabularies: {name} of {task.name} has '
          f'{_shown(own.vocabulary)}, and of {others} {_shown(first.vocabulary)}; give all tasks one vocabulary.'
        )
      if own.dtype != first.dtype:
        raise ConfigError(
          f'the tasks of the mixture {provider.name} have different dtypes: {name} of {task.name} is '
          f'{own.dtype.name}, and others are {first.dtype.name}; give all tasks int32.'
        )


def _shown(vocabulary: seqio.Vocabulary) -> str:
  return f'a {type(vocabulary).__name__} of {vocabulary.vocab_size} ids'
