"""What metrics compare: made of the text of a target or of a prediction (SeqIO's `postprocess_fn`)."""

from collections.abc import Callable, Sequence
from typing import Any

from switch_jax.config import ConfigError

# What a prediction that is no label or no number becomes; never a target.
NO_LABEL = -1
NO_NUMBER = -1.0
UNKNOWN = '<unk>'  # the target of an example whose label the data set withholds

_WORDS = 'a an few her his each every many much my our some that the their these this those which whose your'
_DETERMINERS = frozenset(_WORDS.split())


def _text(value: str | bytes) -> str:
  return value.decode('utf-8', errors='replace') if isinstance(value, bytes) else str(value)


def label(classes: Sequence[str]) -> Callable[..., int]:
  """Returns the function from a label's text to its number.

  A prediction that is none of the classes becomes -1, which equals no target. A target that is none of them is an error
  in the data (or a split without labels, which no metric can be computed on).
  """
  numbers = {name: number for number, name in enumerate(classes)}

  def postprocess(text: str, example: Any = None, is_target: bool = False) -> int:
    del example
    if is_target and text not in numbers:
      remedy = 'this split comes without labels; evaluate on another' if text == UNKNOWN else 'check the data set'
      raise ConfigError(f'The target {text!r} is not one of the labels {", ".join(classes)}; {remedy}.')
    return numbers.get(text, NO_LABEL)

  return postprocess


def number(text: str, example: Any = None, is_target: bool = False) -> float:
  """Returns a text as a number; -1 for a prediction that is none."""
  del example
  try:
    return float(text)
  except ValueError:
    if is_target:
      raise ConfigError(
        f'The target {text!r} is not a number; check the data set, or use a split with labels.'
      ) from None
    return NO_NUMBER


def single_answer(text: str, example: Any = None, is_target: bool = False) -> str | list[str]:
  """Returns a prediction as it is, and a target as the only right answer of its example."""
  del example
  return [text] if is_target else text


def any_answer(text: str, example: Any = None, is_target: bool = False) -> str | list[str]:
  """Returns a prediction as it is, and for a target all right answers of its example."""
  return [_text(answer) for answer in example['answers']] if is_target else text


def record(text: str, example: Any = None, is_target: bool = False) -> dict[str, Any]:
  """ReCoRD: an answer, or all right answers with the query they belong to."""
  if not is_target:
    return {'value': text}
  group = (int(example['idx/passage']), int(example['idx/query']))
  return {'value': [_text(answer) for answer in example['answers']], 'group': group}


_true_or_false = label(('False', 'True'))


def multirc(text: str, example: Any = None, is_target: bool = False) -> dict[str, Any]:
  """MultiRC: whether an answer is right, with the paragraph and question that it belongs to.

  Questions are numbered anew in every paragraph of some releases of the data, so the question alone is not enough.
  """
  result = {'value': _true_or_false(text, is_target=is_target)}
  if is_target:
    result['group'] = (int(example['idx/paragraph']), int(example['idx/question']))
  return result


def _referent_words(text: str) -> list[str]:
  return [word for word in _text(text).strip().lower().split(' ') if word and word not in _DETERMINERS]


def wsc(text: str, example: Any = None, is_target: bool = False) -> int:
  """Winograd schemas: whether the generated referent means the one in question, as T5 decides it.

  The words of one, without case and determiners, must all be in the other; "Bob" and "Bob's hat" are different.
  """
  if is_target:
    return int(example['label'])
  predicted, referent = _referent_words(text), _referent_words(example['targets_pretokenized'])
  if not predicted:
    return NO_LABEL  # would be in any referent
  if any("'" in word for word in predicted) != any("'" in word for word in referent):
    return 0
  return int(set(predicted) <= set(referent) or set(referent) <= set(predicted))


def in_its_own_group(text: str, example: Any = None, is_target: bool = False) -> str | dict[str, str]:
  """Returns a prediction as it is, and a target with itself as its group; for `metrics.by_group`."""
  del example
  return {'value': text, 'group': text} if is_target else text


def translated(text: str, example: Any = None, is_target: bool = False) -> str | dict[str, str]:
  """Returns a prediction as it is, and a target with its language; for `metrics.by_group`.

  The language is what stands in the inputs, "translate English to German: ...".
  """
  if not is_target:
    return text
  task = _text(example['inputs_pretokenized']).partition(': ')[0]
  return {'value': text, 'group': task.removeprefix('translate English to ')}
