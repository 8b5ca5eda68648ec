"""Examples as T5's paper prints them (appendix D)."""

import pytest

from switch_jax.data.quiet_tensorflow import tf
from switch_jax.tasks import formats
from tests.tasks.paper_examples import made


def test_classification_names_the_fields_in_their_order():
  make = formats.labelled('rte', {'b': 'hypothesis', 'a': 'premise'}, ('yes', 'no'))
  assert made(make, a='One.', b='', label=1) == ('rte hypothesis:  premise: One.', 'no')


def test_similarity_is_rounded_to_fifths():
  for label, text in ((3.8, '3.8'), (2.533, '2.6'), (0.09, '0.0'), (5.0, '5.0')):
    assert made(formats.stsb, sentence1='A', sentence2='B', label=label, idx=0) == (
      'stsb sentence1: A sentence2: B',
      text,
    )


def test_multirc_without_html():
  inputs, targets = made(
    formats.multirc,
    question='Who?',
    answer='Both',
    paragraph='<b>Sent 1: </b>One.<br><b>Sent 2: </b>Two.',
    label=1,
    idx={'paragraph': 5, 'question': 29, 'answer': 3},
  )
  assert inputs == 'multirc question: Who? answer: Both paragraph: Sent 1: One. Sent 2: Two.'
  assert targets == 'True'


def test_record_has_an_example_for_each_answer():
  example = {
    'query': 'A @placeholder was there',
    'passage': 'It ended.\n@highlight\nHe won\n@highlight\nShe lost',
    'entities': ['Rome', 'Italy'],
    'answers': ['Rome', 'Italy'],
    'idx': {'passage': 1, 'query': 2},
  }
  dataset = tf.data.Dataset.from_tensors(tf.nest.map_structure(tf.constant, example | {'answers': ['Rome', 'Italy']}))
  examples = list(formats.record(dataset).as_numpy_iterator())
  assert [e['targets'] for e in examples] == [b'Rome', b'Italy']
  assert examples[1]['inputs'].decode() == (
    'record query: A @placeholder was there entities: Rome, Italy passage: It ended. He won. She lost'
  )
  assert examples[1]['answers'].tolist() == [b'Rome', b'Italy']
  tensors = example | {'answers': tf.zeros([0], tf.string)}
  (withheld,) = formats.record(tf.data.Dataset.from_tensors(tensors)).as_numpy_iterator()
  assert withheld['targets'] == b'<unk>'


@pytest.mark.parametrize(
  ('text', 'pronoun', 'index', 'marked'),
  [
    ('Mitchell asked Tom if he could lend some money.', 'he', 4, 'Mitchell asked Tom if *he* could lend some money.'),
    ('He laughed. "Good for him," he said. ', 'him', 4, 'He laughed. "Good for *him* ," he said.'),
    ('They want to use it , now', 'it', 3, 'They want to use *it* , now'),
  ],
)
def test_winograd_schemas(text, pronoun, index, marked):
  example = {'text': text, 'span1_text': 'Tom', 'span2_text': pronoun, 'span2_index': index, 'label': 1, 'idx': 0}
  assert made(formats.wsc, **example) == (f'wsc: {marked}', 'Tom')


def test_definite_pronouns():
  sentence = 'The bee landed on the flower because it had pollen, it did.'
  assert made(
    formats.definite_pronoun, sentence=sentence, pronoun='it', candidates=['the bee', 'the flower'], label=1
  ) == (
    'wsc: The bee landed on the flower because *it* had pollen, it did.',
    'the flower',
  )


def test_squad_has_spaces_around_punctuation():
  example = {'id': '1', 'question': "What's it?", 'context': 'A (b), c.\n\nD', 'answers': {'text': ['b', 'A (b)']}}
  assert made(formats.squad, **example) == ("question: What ' s it ? context: A ( b ) , c . D", 'b')


def test_summaries_and_choices():
  assert made(formats.summary('document', 'summary'), document='Long. ', summary='Short') == (
    'summarize: Long. ',
    'Short',
  )
  assert made(formats.winogrande, sentence='_ is big.', option1='A', option2='B', label=1) == (
    'winogrande sentence: _ is big. option1: A option2: B',
    'B',
  )
  choices = {'text': ['red', 'blue', 'green'], 'label': [0, 1, 2]}
  assert made(formats.arc, question='Which?', choices=choices, answerKey=1) == (
    'arc question: Which? choices: (A) red (B) blue (C) green',
    'blue',
  )
