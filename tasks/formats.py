"""Examples of data sets as texts: the formats that T5 was published with (Raffel et al. 2020, appendix D).

Each function takes an example as its data set has it and returns one with `inputs`, `targets`, and what the metrics
need. For the tasks that T5 was not published on (Winogrande, ANLI, ARC) the formats are ours, in the same manner.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from switch_jax.tasks.answers import UNKNOWN
from switch_jax.tasks.text_to_text import plain

from switch_jax.data.quiet_tensorflow import tf

Example = dict[str, Any]
Format = Callable[[Example], Example]


def _join(*parts: tf.Tensor | str) -> tf.Tensor:
  return tf.strings.join(parts, separator=' ')


def _label_text(label: tf.Tensor, classes: Sequence[str]) -> tf.Tensor:
  """Returns the text of a label; `<unk>` for -1, which stands where the label is withheld.

  Any other number fails: tf.gather on a CPU refuses an index that is out of bounds.
  """
  return tf.gather(tf.constant([UNKNOWN, *classes]), tf.cast(label, tf.int32) + 1)


def labelled(prefix: str, fields: Sequence[str] | Mapping[str, str], classes: Sequence[str]) -> Format:
  """Returns the format of classification: `prefix field: text field: text` and the label's text.

  Args:
    prefix: name of the task.
    fields: of the example, in the order of the text; a mapping gives each another name in the text.
    classes: the texts of labels 0, 1, ...
  """
  names = dict(fields) if isinstance(fields, Mapping) else {field: field for field in fields}

  def make(example: Example) -> Example:
    parts = [part for field, name in names.items() for part in (f'{name}:', example[field])]
    result = {'inputs': _join(prefix, *parts), 'targets': _label_text(example['label'], classes)}
    return result | ({'idx': example['idx']} if 'idx' in example else {})

  return make


def multirc(example: Example) -> Example:
  """MultiRC: question, answer and paragraph, without their HTML, and whether the answer is right."""
  result = labelled('multirc', ('question', 'answer', 'paragraph'), ('False', 'True'))(example)
  inputs = tf.strings.regex_replace(result['inputs'], '<br>', ' ')
  inputs = tf.strings.regex_replace(inputs, '</?b>', '')
  numbers = {f'idx/{name}': example['idx'][name] for name in ('paragraph', 'question', 'answer')}
  return {'inputs': inputs, 'targets': result['targets'], **numbers}


def stsb(example: Example) -> Example:
  """STS-B: the similarity of two sentences, 0 to 5, rounded to the nearest fifth."""
  return {
    'inputs': _join('stsb sentence1:', example['sentence1'], 'sentence2:', example['sentence2']),
    'targets': tf.strings.as_string(tf.round(example['label'] * 5) / 5, precision=1),
    'idx': example['idx'],
  }


def _record_example(example: Example) -> Example:
  """Returns the examples of one ReCoRD query stacked, one for each right answer."""
  passage = tf.strings.regex_replace(example['passage'], '([.?!"\'])\n@highlight\n', r'\1 ')
  passage = tf.strings.regex_replace(passage, '\n@highlight\n', '. ')
  entities = tf.strings.reduce_join(example['entities'], separator=', ')
  inputs = _join('record query:', example['query'], 'entities:', entities, 'passage:', passage)
  answers = example['answers']
  targets = tf.concat([answers, [UNKNOWN]], axis=0)[: tf.maximum(tf.size(answers), 1)]
  count = tf.size(targets)
  return {
    'inputs': tf.repeat(inputs, count),
    'targets': targets,
    'answers': tf.repeat(answers[tf.newaxis], count, axis=0),
    'idx/passage': tf.repeat(example['idx']['passage'], count),
    'idx/query': tf.repeat(example['idx']['query'], count),
  }


@plain
def record(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """ReCoRD: query, entities and passage; an example for each right answer, all of which the metric is given."""
  return dataset.map(plain(_record_example), num_parallel_calls=tf.data.AUTOTUNE).unbatch()


def _mark_pronoun(example: Example) -> tf.Tensor:
  """Returns the text of a Winograd schema with stars around the pronoun that is asked for."""
  words, pronoun = tf.strings.split(example['text'], ' '), example['span2_text']
  length = tf.strings.length(pronoun)
  # In two texts of the data set the index is that of the word before, or punctuation hangs on the pronoun.
  place = example['span2_index']
  place = tf.where(tf.strings.substr(words[place], 0, length) == pronoun, place, place + 1)
  hanging = tf.strings.substr(words[place], length, tf.strings.length(words[place]))
  marked = tf.strings.join(['*', pronoun, tf.where(hanging == '', '*', '* '), hanging])
  before, after = (tf.strings.reduce_join(part, separator=' ') for part in (words[:place], words[place + 1 :]))
  return tf.strings.strip(_join(before, marked, after))


def wsc(example: Example) -> Example:
  """Winograd schemas as generation: the text with `*it*` marked, and what it refers to."""
  return {
    'inputs': _join('wsc:', _mark_pronoun(example)),
    'targets': tf.reshape(example['span1_text'], []),
    'label': example['label'],
    'idx': example['idx'],
  }


def definite_pronoun(example: Example) -> Example:
  """Definite pronoun resolution in the format of `wsc`: the first such pronoun, and the right candidate."""
  pattern = tf.strings.join([' (', example['pronoun'], r')( |\.|,)'])
  sentence = tf.strings.regex_replace(example['sentence'], pattern, r' *\1*\2', replace_global=False)
  return {'inputs': _join('wsc:', sentence), 'targets': example['candidates'][example['label']]}


def summary(article: str, highlights: str) -> Format:
  """Returns the format of summaries: `summarize: article`."""

  def make(example: Example) -> Example:
    return {'inputs': _join('summarize:', example[article]), 'targets': example[highlights]}

  return make


def _space_punctuation(text: tf.Tensor) -> tf.Tensor:
  text = tf.strings.regex_replace(text, '([[:punct:]])', r' \1 ')
  return tf.strings.regex_replace(text, r'\s+', ' ')


def squad(example: Example) -> Example:
  """SQuAD: question and context with spaces around punctuation; the first answer, and all of them for the metric."""
  answers = _space_punctuation(example['answers']['text'])
  question, context = (_space_punctuation(example[name]) for name in ('question', 'context'))
  return {
    'inputs': tf.strings.regex_replace(_join('question:', question, 'context:', context), r'\s+', ' '),
    'targets': answers[0],
    'id': example['id'],
    'context': context,
    'question': question,
    'answers': answers,
  }


def closed_book(prefix: str, answers: Callable[[Example], tuple[tf.Tensor, tf.Tensor]]) -> Format:
  """Returns the format of questions without a text: `prefix question: ...`.

  Args:
    prefix: name of the task.
    answers: gives the target, and all right answers, of an example.
  """

  def make(example: Example) -> Example:
    target, every = answers(example)
    inputs = _join(f'{prefix} question:', example['question'])
    return {'inputs': inputs, 'targets': target, 'answers': every}

  return make


def winogrande(example: Example) -> Example:
  """Winogrande: a sentence with a gap and two options, of which the right one is the target; ours."""
  options = tf.stack([example['option1'], example['option2']])
  inputs = _join(
    'winogrande sentence:', example['sentence'], 'option1:', example['option1'], 'option2:', example['option2']
  )
  label = tf.cast(example['label'], tf.int32)
  return {'inputs': inputs, 'targets': tf.gather(tf.concat([[UNKNOWN], options], axis=0), label + 1)}


def arc(example: Example) -> Example:
  """ARC: a question and its choices `(A) ... (B) ...`; the text of the right one is the target; ours."""
  choices = example['choices']
  letters = tf.gather(tf.constant(['(A)', '(B)', '(C)', '(D)', '(E)']), choices['label'])
  listed = tf.strings.reduce_join(tf.strings.join([letters, choices['text']], separator=' '), separator=' ')
  right = tf.boolean_mask(choices['text'], choices['label'] == example['answerKey'])
  return {
    'inputs': _join('arc question:', example['question'], 'choices:', listed),
    'targets': tf.concat([right, [UNKNOWN]], axis=0)[0],
  }
