"""Tasks of the user's tables: metrics, mixtures, resumption, and what is said of both."""

import dataclasses
import itertools

import numpy as np
import pytest

from switch_jax import data as data_room
from switch_jax.config import ConfigError, DataConfig, TableConfig
from switch_jax.data import providers
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.tasks import table_files

LABELS = ('food', 'sport', 'travel')


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """A cache and a working directory of this test's own, with a table of 90 rows."""
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.chdir(tmp_path)
  write('a.csv', *(f'text number {i},{LABELS[i % 3]}' for i in range(90)))


def write(name, *rows, header='text,label'):
  with open(name, 'w', newline='') as file:
    file.write('\n'.join([header, *rows]) + '\n')


def config(*tables, task='my_task', lengths=None, **fields):
  return DataConfig(
    mixture_or_task_name=task,
    task_module='switch_jax.tasks.table_files',
    feature_lengths=lengths or {'inputs': 32, 'targets': 8},
    batch_size=8,
    tables=tables or (TableConfig(files='a.csv'),),
    **fields,
  )


def metrics_of(**fields):
  table_files.register(config(TableConfig(files='a.csv', **fields), lengths={'inputs': 32, 'targets': 64}))
  return [metric.__name__ for metric in seqio.TaskRegistry.get('my_task').metric_fns]


def test_examples_and_their_description():
  given = config()
  module = providers.import_task_module(given)
  task = providers.find_provider(given, 'train')
  examples = list(task.get_dataset(given.feature_lengths, 'train', shuffle=False).as_numpy_iterator())
  vocabulary = task.output_features['inputs'].vocabulary
  first = vocabulary.decode([int(t) for t in examples[0]['inputs']])
  assert first.startswith('text number')
  assert vocabulary.decode([int(t) for t in examples[0]['targets']]) == LABELS[int(first.split()[-1]) % 3]
  said = providers.describe_text(given, module)
  assert said.startswith(
    "my_task: 90 rows of 1 file(s), inputs '{text}', targets 'label' (guessed: TARGET_COLUMN=label, INPUT_COLUMN=text)"
    ', 3 labels (food 30, sport 30, travel 30), held out are '
  )
  assert said.endswith('by the hash of the inputs, metrics accuracy, f1 (guessed)')
  assert providers.inputs_template(given, module) == '{text}'
  assert table_files.template(dataclasses.replace(given, mixture_or_task_name='my_task_text')) is None


def test_metrics_are_guessed_from_the_targets():
  assert metrics_of() == ['accuracy', 'f1']
  assert metrics_of(metrics=('matthews', 'exact_match')) == ['matthews', 'exact_match']
  write('a.csv', *(f'text {i},{i / 7}' for i in range(90)))
  assert metrics_of() == ['correlation']
  write('a.csv', *(f'text {i},name {i}' for i in range(90)))
  assert metrics_of() == ['exact_match', 'token_f1']
  write('a.csv', *(f'text {i},a summary of quite some words {i}' for i in range(90)))
  assert metrics_of() == ['rouge']
  with pytest.raises(ConfigError, match=r"has 'pearson', which needs numbers, and a target of my_task is 'a summ"):
    metrics_of(metrics=('pearson',))


def test_labels_longer_than_the_targets_are_refused():
  said = (
    r"the label 'travel' of my_task takes 7 tokens with its end, and TASK_FEATURE_LENGTHS gives targets 6; set --gin\."
    r"TASK_FEATURE_LENGTHS=\"\{'inputs': 32, 'targets': 7\}\", or shorter names by LABELS"
  )
  with pytest.raises(ConfigError, match=said):
    table_files.register(config(lengths={'inputs': 32, 'targets': 6}))
  table_files.register(config(task='my_task_text', lengths={'inputs': 32, 'targets': 6}))


def test_no_table():
  with pytest.raises(
    ConfigError, match=r'DataConfig\.tables is None; switch_jax\.tasks\.table_files needs at least one'
  ):
    table_files.register(dataclasses.replace(config(), tables=None))


def test_several_tables_are_mixed_by_their_weights(rows_sharding):
  write('b.csv', *(f'other {i},{"yes" if i % 2 else "no"}' for i in range(60)))
  given = config(
    TableConfig(files='a.csv', name='topics', weight=3.0, template='{text}.'),
    TableConfig(files='b.csv', name='answers'),
    task='my_tasks',
    pack=False,
  )
  source = data_room.open_training(given, 0, rows_sharding)
  vocabulary, texts = source.vocabulary, []
  for batch in itertools.islice(source, 25):
    texts += [vocabulary.decode([int(t) for t in row]) for row in np.asarray(batch['encoder_input_tokens'])]
  source.close()
  assert 0.6 < np.mean([text.startswith('text') for text in texts]) < 0.9
  assert source.template is None
  assert source.has_metrics
  module = providers.import_task_module(given)
  digest, rates = (source.fingerprint[name] for name in ('corpus', 'mixing_rates'))
  assert rates == '{"answers": 1.0, "topics": 3.0}'
  assert module.corpus_digest(given) == digest != module.corpus_digest(config())


def test_a_position_is_good_for_the_same_rows_only(tmp_path, rows_sharding):
  source = data_room.open_training(config(), 0, rows_sharding)
  next(source)
  (tmp_path / 'position').mkdir()
  source.save_position(tmp_path / 'position')
  expected = [np.asarray(next(source)['encoder_input_tokens']) for _ in range(3)]
  source.close()
  again = data_room.open_training(config(), 0, rows_sharding)
  again.restore_position(tmp_path / 'position')
  for rows in expected:
    np.testing.assert_array_equal(np.asarray(next(again)['encoder_input_tokens']), rows)
  again.close()
  other = data_room.open_training(config(TableConfig(files='a.csv', template='x {text}')), 0, rows_sharding)
  with pytest.raises(ConfigError, match=r'corpus was .*the files of TASK_FILES and what is said of their columns'):
    other.restore_position(tmp_path / 'position')
  other.close()
