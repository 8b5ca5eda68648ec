"""Questions with a text, SQuAD, and without one, closed-book: WebQuestions, Natural Questions, TriviaQA.

From TensorFlow Datasets; T5's vocabulary unless `VOCABULARY` names another. Registers `squad_v010_allanswers` and, as
they were published for T5, `web_questions_open`, `natural_questions_open` and `trivia_qa_open`, with `validation` cut
off the end of the training examples; `closed_book_qa` mixes the three by examples. The metric `em` is the exact match
after TriviaQA's normalisation for TriviaQA, after SQuAD's for the others.
"""

from switch_jax.tasks.text_to_text import add_task, mapped, remove_task
from switch_jax.tasks.tfds_source import TfdsSource

from switch_jax.config import DataConfig
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.data.vocabularies import T5_VOCABULARY, make_vocabulary
from switch_jax.tasks import answers, formats, metrics

# Name: the data set, the examples that are trained on, what the test split is, the prefix, target and answers, metric.
CLOSED_BOOK = {
  'web_questions_open': (
    'web_questions:1.0.0',
    3417,
    'test',
    formats.closed_book('wq', lambda example: (example['answers'][0], example['answers'])),
    metrics.squad,
  ),
  'natural_questions_open': (
    'natural_questions_open:1.0.0',
    79168,
    'validation',
    formats.closed_book('nq', lambda example: (example['answer'][0], example['answer'])),
    metrics.squad,
  ),
  'trivia_qa_open': (
    'trivia_qa/unfiltered.nocontext:1.1.0',
    78785,
    'validation',
    formats.closed_book('trivia_qa', lambda example: (example['answer']['value'], example['answer']['aliases'])),
    metrics.trivia_qa,
  ),
}


def register(data: DataConfig | None = None) -> None:
  """Registers tasks and the mixture with the vocabulary of a configuration, or T5's."""
  vocabulary = make_vocabulary((data and data.vocabulary) or T5_VOCABULARY)
  squad = TfdsSource('squad/v1.1:3.0.0', ('train', 'validation'))
  add_task('squad_v010_allanswers', squad, [mapped(formats.squad)], vocabulary, [metrics.squad], answers.any_answer)
  for name, (tfds_name, examples, test, make, metric) in CLOSED_BOOK.items():
    splits = {'train': f'train[:{examples}]', 'validation': f'train[{examples}:]', 'test': test}
    source = TfdsSource(tfds_name, splits)
    add_task(name, source, [mapped(make)], vocabulary, [metric], answers.any_answer)
  remove_task('closed_book_qa')
  seqio.MixtureRegistry.add('closed_book_qa', [(name, float(entry[1])) for name, entry in CLOSED_BOOK.items()])


register()
