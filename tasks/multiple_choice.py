"""Multiple choice by likelihood: each choice is a target of its own, and the model's answer is the likeliest of them.

    add_task(
      'my_questions',
      source,  # of examples with what the questions are made of
      [mapped(lambda e: {'inputs': e['question'], 'choices': e['choices'], 'answer': e['label']})],
      make_vocabulary('bytes'),
      with_eos=False,
    )

A choice is scored by its log-likelihood after the inputs (`--run_mode=eval`), by models with an encoder and without.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from switch_jax.tasks.text_to_text import remove_task

from switch_jax.config import ConfigError
from switch_jax.data.quiet_tensorflow import seqio, tf


@dataclasses.dataclass(frozen=True)
class Choice:
  """What a metric knows of a choice.

  Attributes:
    question: its number in the split.
    num_choices: how many the question has.
    is_answer: whether this is the right one.
    num_bytes: of its text in UTF-8.
  """

  question: int
  num_choices: int
  is_answer: bool
  num_bytes: int


def split_choices(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Makes an example of each choice.

  Args:
    dataset: examples with `inputs`, a text; `choices`, texts `[n]`; and `answer`, the index of the right one.

  Returns:
    Examples with `inputs`, `targets`, `question`, `num_choices` and `is_answer`, in the same order.
  """

  def split(question: tf.Tensor, example: dict[str, tf.Tensor]) -> tf.data.Dataset:
    count = tf.size(example['choices'])
    return tf.data.Dataset.from_tensor_slices(
      {
        'inputs': tf.fill([count], example['inputs']),
        'targets': example['choices'],
        'question': tf.fill([count], question),
        'num_choices': tf.fill([count], count),
        'is_answer': tf.range(count) == tf.cast(example['answer'], tf.int32),
      }
    )

  return dataset.enumerate().flat_map(split)


def as_choice(text: str, example: Any = None, is_target: bool = False) -> str | Choice:
  """Returns a prediction as it is, and of a target what the metrics need."""
  if not is_target:
    return text
  numbers = (int(example[name]) for name in ('question', 'num_choices', 'is_answer'))
  question, num_choices, is_answer = numbers
  return Choice(question, num_choices, bool(is_answer), len(text.encode()))


def accuracy(targets: Sequence[Choice], scores: Sequence[float]) -> dict[str, float]:
  """How many questions have their answer as the likeliest choice, in percent."""
  return {'accuracy': _percentage(targets, scores, lambda choice: 1)}


def accuracy_by_byte(targets: Sequence[Choice], scores: Sequence[float]) -> dict[str, float]:
  """The same with the log-likelihood for each byte of a choice, which long choices do not lose by."""
  return {'accuracy_by_byte': _percentage(targets, scores, lambda choice: max(choice.num_bytes, 1))}


def _percentage(targets: Sequence[Choice], scores: Sequence[float], length: Callable[[Choice], int]) -> float:
  """Returns how many questions are right; one of which not all choices are there (`num_examples`) does not count.

  Raises:
    ConfigError: a question has no answer, or none is whole.
  """
  questions: dict[int, list[tuple[float, bool]]] = {}
  for choice, score in zip(targets, scores, strict=True):
    questions.setdefault(choice.question, []).append((float(score) / length(choice), choice.is_answer))
  sizes = {choice.question: choice.num_choices for choice in targets}
  right = []
  for question, choices in questions.items():
    if len(choices) < sizes[question]:
      continue
    values, is_answer = zip(*choices, strict=True)
    if sum(is_answer) != 1:
      raise ConfigError(
        f'question {question} has {sum(is_answer)} answers among its {len(choices)} choices; `answer` must be the '
        'index of one.'
      )
    right.append(is_answer[int(np.argmax(values))])
  if not right:
    raise ConfigError('no question has all of its choices here; raise num_examples.')
  return 100 * float(np.mean(right))


def add_task(
  name: str,
  source: seqio.DataSource,
  formatting: Sequence[Callable],
  vocabulary: seqio.Vocabulary,
  with_eos: bool = True,
) -> None:
  """Registers a task with both metrics, in place of an older one of that name.

  Args:
    name: in SeqIO's registry.
    source: of the raw examples.
    formatting: preprocessors that make what `split_choices` takes.
    vocabulary: of both features.
    with_eos: whether inputs and choices end with EOS, as the model was trained. One trained on targets alone reads
      inputs without, and a choice begins where they end.
  """
  remove_task(name)
  seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[*formatting, split_choices, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
    output_features={name: seqio.Feature(vocabulary, add_eos=with_eos) for name in ('inputs', 'targets')},
    postprocess_fn=as_choice,
    metric_fns=[accuracy, accuracy_by_byte],
  )
