"""Winogrande, ANLI and ARC in our formats."""

import pytest

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import providers
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.tasks import reasoning
from tests.tasks.paper_examples import LENGTHS, check_task


@pytest.mark.parametrize('name', ['winogrande_xl', 'anli_r1', 'anli_r2', 'anli_r3'])
def test_tasks_on_mock_data(name, mock_data):
  check_task(name)


def texts_of(name, monkeypatch, **example):
  """Returns inputs and targets of a task's one example as text, and its accuracy where that is the prediction."""
  dataset = tf.data.Dataset.from_tensors(tf.nest.map_structure(tf.constant, example))
  monkeypatch.setattr(reasoning.TfdsSource, 'get_dataset', lambda *args, **settings: dataset)
  task = seqio.get_mixture_or_task(name)
  [found] = task.get_dataset(
    {'inputs': 99, 'targets': 99}, split='validation', shuffle=False, try_in_mem_cache=False
  ).as_numpy_iterator()
  return found['inputs_pretokenized'].decode(), found['targets_pretokenized'].decode()


def test_anli_is_classified_and_its_context_is_the_premise(paper_tasks, monkeypatch):
  example = {'hypothesis': 'It rains.', 'context': 'It is wet.', 'label': 2, 'uid': 'x', 'reason': ''}
  assert texts_of('anli_r2', monkeypatch, **example) == (
    'anli hypothesis: It rains. premise: It is wet.',
    'contradiction',
  )
  postprocess = seqio.TaskRegistry.get('anli_r2').postprocess_fn
  assert [postprocess(text) for text in ('entailment', 'neutral', 'contradiction', 'maybe')] == [0, 1, 2, -1]


def test_arc_and_winogrande_generate_the_text_of_the_right_choice(paper_tasks, monkeypatch):
  choices = {'text': ['red', 'blue'], 'label': [0, 1]}
  assert texts_of('arc_easy', monkeypatch, question='Which?', choices=choices, answerKey=1, id='x') == (
    'arc question: Which? choices: (A) red (B) blue',
    'blue',
  )
  assert texts_of('winogrande_xl', monkeypatch, sentence='_ fell.', option1='A', option2='B', label=0)[1] == 'A'
  assert seqio.TaskRegistry.get('winogrande_xl').source.tfds_dataset._split_map['train'] == 'train_xl'


def test_the_default_vocabulary_is_not_read_before_it_is_needed():
  reasoning.register(None)
  vocabulary = seqio.TaskRegistry.get('arc_easy').output_features['targets'].vocabulary
  assert vocabulary.sentencepiece_model_file == 'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model'
  with pytest.raises(ConfigError, match=r'cannot be read.*copy T5'):
    providers.find_provider(DataConfig(mixture_or_task_name='arc_easy', feature_lengths=LENGTHS, batch_size=2), 'train')
