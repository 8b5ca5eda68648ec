"""Prose is told from the rest, and the corpus does not depend on chance."""

import pytest

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.tasks import docstrings

PROSE = 'This function takes an array of numbers and returns one of the same shape, in which every number is {}.'

NAMES = [f'{a}{b}' for a in 'abc' for b in 'abcdefghij']

SOURCE = f'''"""{PROSE.format('one larger')}

  >>> increment([1, 2, 3])  # {PROSE.format('of a doctest')}

Copyright of the authors. {PROSE.format('licensed')}

{PROSE.format('spread over').replace(' ', chr(10) + '    ')}

Too short to be of use to anyone.
"""
import this_must_not_be_run
TABLE = {{1.0: 2.0, 3.0: 4.0}}  # 1 2 3
def f():
  \'\'\'{PROSE.format('halved')}\'\'\'
'''


@pytest.fixture
def packages(tmp_path, monkeypatch):
  """Stands in for what is installed: two made-up packages; returns their folders."""
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))
  roots = {name: [tmp_path / name] for name in ('python', 'numpy')}
  for [root] in roots.values():
    (root / 'tests').mkdir(parents=True)
  monkeypatch.setattr(docstrings, 'find_roots', lambda: roots)
  return [root for [root] in roots.values()]


def fill(packages, order=1):
  """Writes 300 docstrings into the packages, each twice."""
  for package in packages[::order]:
    for i in range(10):
      prose = [PROSE.format(f'that of row {NAMES[i]} and column {NAMES[j]}') for j in range(30)]
      (package / f'module_{i}.py').write_text('\n'.join(f'"""{text}"""' for text in prose))


def test_only_prose_is_taken():
  expected = [PROSE.format(word) for word in ('one larger', 'spread over', 'halved')]
  assert list(docstrings.find_paragraphs(SOURCE)) == expected


def test_tests_and_unreadable_files_are_skipped(packages):
  text = '"""' + PROSE.format('{}') + '"""'
  for name in ('module.py', 'test_module.py', 'module_test.py', 'tests/helper.py'):
    (packages[0] / name).write_text(text.replace('{}', name.replace('.', ' ')))
  (packages[0] / 'latin.py').write_bytes(text.encode() + b'\xe9')
  assert list(docstrings.read_paragraphs(packages[0])) == [PROSE.format('module py')]


def test_the_corpus_is_distinct_split_and_reproducible(packages, tmp_path, monkeypatch):
  fill(packages)
  first = docstrings.get_corpus()
  lines = {split: list(first.paragraphs(split)) for split in ('train', 'validation')}
  assert len(lines['train']) + len(lines['validation']) == 300  # of 600
  assert lines['validation']
  assert not set(lines['train']) & set(lines['validation'])
  assert first.summary['made_of']['packages'].keys() == {'python', 'numpy'}

  # The order in which files are found changes nothing.
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'another_cache'))
  fill(packages, order=-1)
  assert docstrings.get_corpus().digest == first.digest


def test_versions_name_the_corpus(packages, monkeypatch):
  fill(packages)
  first = docstrings.get_corpus()
  assert docstrings.get_corpus().directory == first.directory
  monkeypatch.setattr(docstrings.importlib.metadata, 'version', lambda name: '99')
  assert docstrings.get_corpus().directory != first.directory


def test_missing_packages_are_left_out(monkeypatch):
  monkeypatch.setattr(docstrings, 'PACKAGES', {'numpy': 'numpy', 'no_such_package': 'no-such-package'})
  assert list(docstrings.find_roots()) == ['python', 'numpy']
  assert list(docstrings.find_versions()) == ['python', 'numpy']


def test_no_docstrings_are_an_error(packages):
  with pytest.raises(ConfigError, match=r'No prose was found .* switch_jax.tasks.text_files'):
    docstrings.get_corpus()


def test_the_task_reads_the_corpus(packages):
  fill(packages)
  task = seqio.get_mixture_or_task(docstrings.NAME)
  examples = task.get_dataset({'inputs': 64, 'targets': 15}, split='train', shuffle=False, seed=0)
  example = next(examples.as_numpy_iterator())
  assert len(example['inputs']) == 64
  vocabulary = task.output_features['targets'].vocabulary
  assert vocabulary.vocab_size == 359
  text = vocabulary.decode([int(token) for token in example['inputs']])
  assert sum(letter in PROSE for letter in text) > 0.9 * len(text) > 45
  config = DataConfig(mixture_or_task_name=docstrings.NAME, feature_lengths={'inputs': 64, 'targets': 15}, batch_size=1)
  assert docstrings.corpus_digest(config) == docstrings.get_corpus().digest
