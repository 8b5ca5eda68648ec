"""SQuAD and the closed-book questions: what the prompt and the right answers are, and every task on mock data."""

import pytest

from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.tasks import question_answering
from tests.tasks.paper_examples import check_task, made


@pytest.mark.parametrize(
  ('name', 'example', 'expected', 'answers'),
  [
    ('web_questions_open', {'answers': ['x', 'y']}, ('wq question: q', 'x'), ['x', 'y']),
    ('natural_questions_open', {'answer': ['x', 'y']}, ('nq question: q', 'x'), ['x', 'y']),
    (
      'trivia_qa_open',
      {'answer': {'value': 'Ann', 'aliases': ['An', 'Anna']}},
      ('trivia_qa question: q', 'Ann'),
      ['An', 'Anna'],
    ),
  ],
)
def test_each_data_set_has_its_answers_in_its_own_place(name, example, expected, answers):
  make = question_answering.CLOSED_BOOK[name][3]
  assert made(make, question='q', **example) == expected
  assert make({'question': 'q', **example})['answers'] == answers


@pytest.mark.parametrize('name', ['squad_v010_allanswers', *question_answering.CLOSED_BOOK])
def test_tasks_on_mock_data(name, mock_data):
  check_task(name)


def test_validation_is_cut_off_the_end_of_the_training_examples():
  source = seqio.TaskRegistry.get('web_questions_open').source
  splits = {split: source.tfds_dataset._split_map[split] for split in source.splits}
  assert splits == {'train': 'train[:3417]', 'validation': 'train[3417:]', 'test': 'test'}


def test_the_mixture_weighs_by_the_examples_that_are_trained_on():
  mixture = seqio.get_mixture_or_task('closed_book_qa')
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates == {'web_questions_open': 3417, 'natural_questions_open': 79168, 'trivia_qa_open': 78785}


def test_trivia_qa_has_its_own_normalisation():
  """Hyphens are spaces to it, and nothing to SQuAD's."""
  for name, expected in (('trivia_qa_open', 100.0), ('web_questions_open', 0.0)):
    [metric] = seqio.TaskRegistry.get(name).metric_fns
    assert metric([['Mary-Kate']], ['mary kate'])['em'] == expected
