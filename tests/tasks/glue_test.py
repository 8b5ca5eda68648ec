"""GLUE: examples as T5's paper prints them, the labels of the data sets, and every task on mock data."""

import pytest

from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.tasks import glue
from tests.tasks.paper_examples import check_task, classified


def test_examples():
  assert classified(glue, 'cola', sentence='John made Bill master of himself.', label=1) == (
    'cola sentence: John made Bill master of himself.',
    'acceptable',
  )
  assert classified(glue, 'mnli', hypothesis='The Cardinals have won.', premise='yeah well', label=2) == (
    'mnli hypothesis: The Cardinals have won. premise: yeah well',
    'contradiction',
  )
  assert classified(glue, 'qqp', question1='Why?', question2='How?', label=0)[1] == 'not_duplicate'


def test_labels_that_are_withheld_or_outside_the_set():
  assert classified(glue, 'rte', sentence1='', sentence2='x', label=-1) == ('rte sentence1:  sentence2: x', '<unk>')
  with pytest.raises(tf.errors.InvalidArgumentError, match='not in'):
    classified(glue, 'rte', sentence1='a', sentence2='b', label=2)


def test_labels_are_those_of_the_data_sets():
  from tensorflow_datasets.text import glue as tfds_glue

  for name, (_, _, classes, _) in glue.CLASSIFICATION.items():
    assert tuple(tfds_glue.Glue.builder_configs[name].label_classes) == classes
  assert set(glue.CLASSIFICATION) | {'stsb'} == set(tfds_glue.Glue.builder_configs)


@pytest.mark.parametrize('name', [*glue.CLASSIFICATION, 'stsb'])
def test_tasks_on_mock_data(name, mock_data):
  check_task(glue.task_name(name))


def test_the_mixture_trains_on_eight_tasks_and_evaluates_on_all_but_wnli():
  mixture = seqio.get_mixture_or_task('glue_v002_proportional')
  rates = {task.name.split('_', 1)[1].removesuffix('_v002'): mixture.get_rate(task) for task in mixture.tasks}
  assert set(rates) == set(glue.CLASSIFICATION) - {'wnli'} | {'stsb'}
  assert {name for name, rate in rates.items() if not rate} == {'mnli_matched', 'mnli_mismatched', 'ax'}
  assert rates['qqp'] / rates['rte'] == 363849 / 2490
