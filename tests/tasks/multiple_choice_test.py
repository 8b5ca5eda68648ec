"""Choices as targets, and which of them the model takes."""

import numpy as np
import pytest
from switch_jax.tasks.text_to_text import mapped, remove_task

from switch_jax.config import ConfigError
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.tasks import multiple_choice

QUESTIONS = [('one', ['a', 'bbbb'], 1), ('two', ['c', 'dd', 'e'], 0)]


def source(split, shuffle_files, seed=None):
  del split, shuffle_files, seed
  names = ('question', 'choices', 'label')
  rows = [dict(zip(names, question, strict=True)) for question in QUESTIONS]
  return tf.data.Dataset.from_generator(
    lambda: iter(rows),
    output_signature={
      'question': tf.TensorSpec([], tf.string),
      'choices': tf.TensorSpec([None], tf.string),
      'label': tf.TensorSpec([], tf.int64),
    },
  )


def test_every_choice_is_an_example():
  formatting = [mapped(lambda e: {'inputs': e['question'], 'choices': e['choices'], 'answer': e['label']})]
  multiple_choice.add_task(
    'my_questions', seqio.FunctionDataSource(source, ['validation']), formatting, seqio.ByteVocabulary(), with_eos=False
  )
  task = seqio.get_mixture_or_task('my_questions')
  examples = list(task.get_dataset({'inputs': 8, 'targets': 8}, 'validation', shuffle=False).as_numpy_iterator())
  remove_task('my_questions')
  assert [e['targets_pretokenized'].decode() for e in examples] == ['a', 'bbbb', 'c', 'dd', 'e']
  assert [e['inputs_pretokenized'].decode() for e in examples] == ['one'] * 2 + ['two'] * 3
  assert examples[1]['targets'].tolist() == [101] * 4
  found = [multiple_choice.as_choice(e['targets_pretokenized'].decode(), e, is_target=True) for e in examples]
  rows = [(0, 2, False, 1), (0, 2, True, 4), (1, 3, True, 1), (1, 3, False, 2), (1, 3, False, 1)]
  assert found == [multiple_choice.Choice(*row) for row in rows]
  assert multiple_choice.as_choice('what was predicted') == 'what was predicted'
  assert {m.model_output_type for m in task.metric_objs} == {seqio.metrics.ModelOutputType.SCORE}


CHOICES = [
  multiple_choice.Choice(*row)
  for row in [(0, 2, False, 1), (0, 2, True, 4), (1, 3, True, 1), (1, 3, False, 2), (1, 3, False, 1)]
]


def test_the_answer_is_the_likeliest_choice_as_a_whole_or_by_byte():
  scores = [-2.0, -3.0, -1.0, -4.0, -5.0]
  assert multiple_choice.accuracy(CHOICES, scores) == {'accuracy': 50.0}
  assert multiple_choice.accuracy_by_byte(CHOICES, np.array(scores)) == {'accuracy_by_byte': 100.0}
  # The last question is not whole.
  assert multiple_choice.accuracy(CHOICES[:4], scores[:4]) == {'accuracy': 0.0}


def test_what_cannot_be_measured_is_named():
  with pytest.raises(ConfigError, match='no question has all of its choices'):
    multiple_choice.accuracy(CHOICES[:1], [-1.0])
  twice = [multiple_choice.Choice(4, 2, True, 1)] * 2
  with pytest.raises(ConfigError, match='question 4 has 2 answers among its 2 choices'):
    multiple_choice.accuracy(twice, [-1.0, -2.0])
