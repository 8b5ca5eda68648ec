"""What the code of a task raises: one line with the task's name and the place, wherever it is raised."""

import dataclasses
import sys

import numpy as np
import pytest

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import providers, read_held_out, task_errors
from switch_jax.data.quiet_tensorflow import seqio, tf

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)
TEXTS = [f'text {i}' for i in range(12)]
CONFIG = DataConfig(mixture_or_task_name='good', feature_lengths={'inputs': 16, 'targets': 16}, batch_size=8)


def counted(texts=TEXTS, counts=True):
  def make(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices({'inputs': TEXTS, 'targets': TEXTS}).take(len(texts))

  sizes = dict.fromkeys(('train', 'validation'), len(texts)) if counts else None
  return seqio.FunctionDataSource(make, splits=('train', 'validation'), num_input_examples=sizes)


def fails_at_once(dataset):
  raise RuntimeError('not today')


def exits(dataset):
  sys.exit('not now')


def fails_in_python(dataset):
  def check(text):
    if text == b'text 7':
      raise LookupError('seven is odd')
    return text

  return dataset.map(lambda x: {k: tf.ensure_shape(tf.py_function(check, [v], tf.string), []) for k, v in x.items()})


def fails_while_traced(dataset):
  def trace(example):
    raise LookupError('no such field')

  return dataset.map(trace)


def lacks_targets(dataset):
  return dataset.map(lambda example: {'inputs': example['inputs']})


def shifts_ids(dataset):
  return dataset.map(lambda example: {name: example[name] + 500 for name in ('inputs', 'targets')})


@pytest.fixture(scope='module', autouse=True)
def tasks():
  made = {
    'good': {},
    'good_too': {},
    'uncounted': {'source': counted(counts=False)},
    'empty': {'source': counted([])},
    'at_once': {'before': [fails_at_once]},
    'exits': {'before': [exits]},
    'in_python': {'before': [fails_in_python]},
    'while_traced': {'before': [fails_while_traced]},
    'no_targets': {'before': [lacks_targets]},
    'far_ids': {'after': [shifts_ids]},
    'other_bytes': {'vocabulary': seqio.ByteVocabulary(extra_ids=3)},
  }
  for name, parts in made.items():
    seqio.TaskRegistry.add(
      name,
      source=parts.get('source') or counted(),
      preprocessors=[*parts.get('before', []), seqio.preprocessors.tokenize, *parts.get('after', [])],
      output_features={
        feature: seqio.Feature(parts.get('vocabulary', VOCABULARY), add_eos=False) for feature in ('inputs', 'targets')
      },
    )
  mixtures = {
    'with_uncounted': (['good', 'uncounted'], seqio.mixing_rate_num_examples),
    'with_empty': (['good', 'empty'], 1.0),
    'with_others': (['good', 'other_bytes'], 1.0),
    'with_python': (['good', 'in_python'], 1.0),
    'with_at_once': (['good', 'at_once'], 1.0),
    'with_exit': (['good', 'exits'], 1.0),
    'with_words': (['uncounted', 'good'], 'often'),
    'without_rate': (['good', 'good_too'], lambda task: 1 / 0),
    'with_nan': (['good', 'good_too'], float('nan')),
    'of_mixture': (['with_counts'], seqio.mixing_rate_num_examples),
  }
  seqio.MixtureRegistry.add('with_counts', ['good', 'good_too'], default_rate=seqio.mixing_rate_num_examples)
  for name, (parts, rate) in mixtures.items():
    seqio.MixtureRegistry.add(name, parts, default_rate=rate)
  yield
  for name in made:
    seqio.TaskRegistry.remove(name)
  for name in (*mixtures, 'with_counts'):
    seqio.MixtureRegistry.remove(name)


@pytest.mark.parametrize(
  ('name', 'parts'),
  [
    (
      'with_uncounted',
      ['rate of uncounted in the mixture with_uncounted', 'num_input_examples', 'fixed rate', 'CACHED'],
    ),
    ('with_empty', ['empty has no example in its split']),
    ('with_others', ['different vocabularies: inputs of other_bytes', '262 ids, and of good', '359 ids']),
    ('with_python', ['the task in_python failed', 'LookupError: seven is odd (task_errors_test.py, line']),
    ('with_at_once', ['whose task at_once', 'RuntimeError: not today (task_errors_test.py, line', 'in fails_at_once)']),
    ('exits', ["is 'exits', which cannot be read as configured: SystemExit: not now (task_errors_test.py, line"]),
    ('with_exit', ['whose task exits', 'SystemExit: not now']),
    ('with_words', ["in the mixture with_words cannot be computed: could not convert string to float: 'often'; give"]),
    ('without_rate', ['rate of good in the mixture without_rate', 'ZeroDivisionError']),
    ('with_nan', ['the rate of good in the mixture with_nan is nan']),
    ('of_mixture', ['in the mixture of_mixture', "'rate' for sub-mixture 'with_counts' must be a number"]),
    ('at_once', ["is 'at_once', which cannot be read as configured: RuntimeError: not today"]),
    ('in_python', ['the task in_python failed', "'validation' were read: LookupError: seven is odd", 'in check)']),
    ('while_traced', ["is 'while_traced'", 'LookupError: no such field (task_errors_test.py, line']),
    ('no_targets', ["is 'no_targets'", 'missing expected output feature', 'targets']),
    ('far_ids', ['far_ids gives the token 623 among the inputs; the ids are 0 to 358']),
    ('nowhere', ["is 'nowhere', which is no registered task or mixture"]),
  ],
)
def test_the_task_is_named_in_one_line(name, parts):
  with pytest.raises(ConfigError) as caught:
    read_held_out(dataclasses.replace(CONFIG, mixture_or_task_name=name), 2)
  message = str(caught.value)
  assert '\n' not in message
  for part in parts:
    assert part in message


def test_a_mixture_in_a_mixture_with_numbers_is_read():
  seqio.MixtureRegistry.add('outer', [('with_counts', 2.0), ('good', 1.0)])
  try:
    batches, _ = read_held_out(dataclasses.replace(CONFIG, mixture_or_task_name='outer'), 2)
  finally:
    seqio.MixtureRegistry.remove('outer')
  assert batches


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    (
      'def f():\n  raise RuntimeError("gone")\nf()\n',
      'RuntimeError: gone (own_tasks.py, line 2, in f)); mend the module',
    ),
    ('import sys\nsys.exit("no data")\n', 'SystemExit: no data (own_tasks.py, line 2'),
    ('x = (\n', "SyntaxError: '(' was never closed (own_tasks.py, line 1)"),
    ('def register(data):\n  return data.nothing\n', 'register() of the task module own_tasks failed: AttributeError'),
    (
      'def corpus_digest(data):\n  raise OSError("no disk")\n',
      'corpus_digest() of the task module own_tasks failed: OSError: no disk (own_tasks.py, line 2, in corpus_digest)',
    ),
    (
      'def corpus_digest(data):\n  return b"1"\n',
      "corpus_digest() of the task module own_tasks returned b'1'; it must",
    ),
    ('def describe(data):\n  return data.nothing\n', 'describe() of the task module own_tasks failed: AttributeError'),
    ('def describe(data, more):\n  return more\n', 'describe() of the task module own_tasks failed: TypeError'),
  ],
)
def test_what_a_task_module_raises(source, message, tmp_path, monkeypatch):
  (tmp_path / 'own_tasks.py').write_text(source)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(__import__('sys').modules, 'own_tasks', raising=False)
  config = dataclasses.replace(CONFIG, task_module='own_tasks')

  def begin():
    module = providers.import_task_module(config)
    providers.fingerprint(config, 0, module, providers.find_provider(config, 'train'))
    providers.describe_text(config, module)

  with pytest.raises(ConfigError) as caught:
    begin()
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


def test_numbers_of_examples_may_be_numpys(monkeypatch):
  task = providers.find_provider(CONFIG, 'train')
  digest = providers.fingerprint(CONFIG, 0, None, task)['corpus']
  monkeypatch.setattr(task.source, '_num_input_examples', dict.fromkeys(task.splits, np.int64(len(TEXTS))))
  assert providers.fingerprint(CONFIG, 0, None, task)['corpus'] == digest


def test_what_tensorflow_puts_around_an_error_is_left_out():
  error = ValueError(
    '{{function_node __wrapped__X}} Error in user-defined function passed to MapDataset:5 transformation with '
    'iterator: Iterator::Root::Map: too\nlong\n\t [[{{node assert}}]] [Op:IteratorGetNext] name: '
  )
  assert task_errors.explain(error) == 'too long'
  pattern = r'^reading: KeyError: 1 .*; mend it \(--debug has the traceback\)\.$'
  with pytest.raises(ConfigError, match=pattern), task_errors.failing('reading', 'mend it'):
    raise KeyError(1)
