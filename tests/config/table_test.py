"""What is said of tables that cannot be a task."""

import pytest

from switch_jax.config import ConfigError, DataConfig, TableConfig
from tests.gin_runs import load


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    (dict(files=''), r'files is .*; it must name files; set --gin\.TASK_FILES='),
    (dict(name='my task'), r"name is 'my task'; it must be letters, digits and underscores"),
    (dict(held_out_fraction=1.0), r'held_out_fraction is 1\.0; it must be greater than 0 and less than 1'),
    (dict(input_column='a', template='{b}'), r"input_column is 'a'; template is '\{b\}', .* leave one of them out"),
    (dict(labels=('a',)), 'it must have at least two labels'),
    (dict(labels={'0': 'a', '1': 'a'}), 'it must have at least two labels'),
    (dict(labels=('a', 'b', 'a')), 'name each label once'),
    (
      dict(metrics=('accurcy',)),
      r"'accurcy' is none of accuracy, f1, .*, nor a function of .*\. Did you mean 'accuracy'\?",
    ),
    (dict(metrics=()), 'give at least one of accuracy'),
    (dict(weight=0.0), 'weight is 0.0; it must be greater than 0'),
    (dict(labels=5), 'labels is 5; it must be a tuple of a string or a dict'),
  ],
)
def test_what_is_refused(fields, said):
  with pytest.raises(ConfigError, match=said):
    TableConfig(**({'files': 'a.csv'} | fields))


def data(*tables):
  return DataConfig(
    mixture_or_task_name='my_tasks', feature_lengths={'inputs': 8, 'targets': 8}, batch_size=1, tables=tables
  )


def test_tables_need_names_of_their_own():
  with pytest.raises(ConfigError, match=r'each task must have a name of its own'):
    data(TableConfig(files='a'), TableConfig(files='b'))
  with pytest.raises(ConfigError, match='it must name at least one table'):
    data()


def test_tables_come_back_from_what_is_recorded():
  config = data(TableConfig(files='a', labels={0: 'no', 1: 'yes'}), TableConfig(files='b', name='b', labels=('x', 'y')))
  back = DataConfig.from_json(config.to_json())
  assert back == config


def test_gin_mixes_several_tables():
  bindings = [
    'config.DataConfig.tables=(@one/config.TableConfig(), @two/config.TableConfig())',
    'one/config.TableConfig.name=one',
    'two/config.TableConfig.name=two',
    'two/config.TableConfig.files=b.csv',
    'two/config.TableConfig.weight=2',
    'MIXTURE_OR_TASK_NAME=my_tasks',
    'TASK_FILES=a.csv',
    'LABELS=("no", "yes")',
  ]
  run = load('gin/examples/my_task.gin', bindings=bindings)
  one, two = run.data.tables
  assert (one.files, one.weight, two.files, two.weight) == ('a.csv', 1.0, 'b.csv', 2.0)
  assert one.labels == two.labels == ('no', 'yes')
  assert 'data.tables' not in run.identity()
