"""SuperGLUE: examples as T5's paper prints them, the labels of the data sets, and the tasks on mock data."""

import pytest

from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.tasks import super_glue
from tests.tasks.paper_examples import check_task, classified

# Mock data is no use for Winograd schemas, whose words and their places must fit together.
NAMES = [f'super_glue_{name}_v102' for name in (*super_glue.CLASSIFICATION, 'multirc', 'record')]


def test_examples():
  assert classified(super_glue, 'copa', choice1='a', choice2='b', premise='p', question='effect', label=1) == (
    'copa choice1: a choice2: b premise: p question: effect',
    'choice2',
  )
  assert classified(super_glue, 'wic', sentence1='It was a swing.', sentence2='Swing it.', word='swing', label=0) == (
    'wic sentence1: It was a swing. sentence2: Swing it. word: swing',
    'False',
  )
  assert classified(super_glue, 'axb', sentence1='One.', sentence2='Two.', label=1) == (
    'rte hypothesis: Two. premise: One.',
    'not_entailment',
  )


def test_labels_are_those_of_the_data_sets():
  from tensorflow_datasets.text import super_glue as tfds_super_glue

  for name, (_, _, classes, _) in super_glue.CLASSIFICATION.items():
    assert tuple(tfds_super_glue.SuperGlue.builder_configs[name].label_classes) == classes


@pytest.mark.parametrize('name', [*NAMES, 'dpr_v001_simple'])
def test_tasks_on_mock_data(name, mock_data):
  check_task(name)


def test_winograd_schemas_are_trained_on_where_the_referent_can_be_generated(paper_tasks, monkeypatch):
  """Of two candidates for one pronoun only the right one is a target; both are evaluated."""
  rows = {
    'text': ['Ann told Eve that she won.'] * 2,
    'span1_text': ['Eve', 'Ann'],
    'span2_text': ['she'] * 2,
    'span2_index': [4] * 2,
    'label': [0, 1],
    'idx': [0, 1],
  }
  monkeypatch.setattr(
    super_glue.TfdsSource, 'get_dataset', lambda *args, **settings: tf.data.Dataset.from_tensor_slices(rows)
  )
  found = {}
  for part, split in (('train', 'train'), ('eval', 'validation')):
    task = seqio.get_mixture_or_task(f'super_glue_wsc_v102_simple_{part}')
    dataset = task.get_dataset({'inputs': 99, 'targets': 9}, split=split, shuffle=False, try_in_mem_cache=False)
    found[part] = [
      (example['inputs_pretokenized'].decode(), example['targets_pretokenized'].decode(), example)
      for example in dataset.as_numpy_iterator()
    ]
  assert [targets for _, targets, _ in found['train']] == ['Ann']
  assert [targets for _, targets, _ in found['eval']] == ['Eve', 'Ann']
  assert found['train'][0][0] == 'wsc: Ann told Eve that *she* won.'
  task = seqio.get_mixture_or_task('super_glue_wsc_v102_simple_eval')
  examples = [example for _, _, example in found['eval']]
  assert [task.postprocess_fn('', example=example, is_target=True) for example in examples] == [0, 1]
  assert [task.postprocess_fn('ann', example=example, is_target=False) for example in examples] == [0, 1]


def test_the_mixture_weighs_by_examples():
  mixture = seqio.get_mixture_or_task('super_glue_v102_proportional')
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates == super_glue.EXAMPLES
