"""Metrics that are chosen by name, all on the texts of targets and predictions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from switch_jax.config import METRICS, ConfigError
from switch_jax.config.named_objects import load_object
from switch_jax.tasks import metrics

Texts = Sequence[str]


def stripped(text: str, example: Any = None, is_target: bool = False) -> str:
  """Returns a target or a prediction as the metrics here compare it."""
  del example, is_target
  return text.strip()


def _numbers_of_classes(targets: Texts, predictions: Texts) -> tuple[list[int], list[int]]:
  """Returns each class of the targets as a number, and -1 for a prediction that is none of them."""
  numbers = {name: number for number, name in enumerate(sorted(set(targets)))}
  return [numbers[target] for target in targets], [numbers.get(prediction, -1) for prediction in predictions]


def f1(targets: Texts, predictions: Texts) -> dict[str, float]:
  """F1 averaged over the classes of the targets, each counted the same (macro)."""
  wanted, found = (np.asarray(side) for side in _numbers_of_classes(targets, predictions))
  return {'f1': 100 * float(np.mean([metrics.class_f1(wanted, found, number) for number in np.unique(wanted)]))}


def matthews(targets: Texts, predictions: Texts) -> dict[str, float]:
  """Matthews' correlation coefficient."""
  return metrics.matthews_corrcoef(*_numbers_of_classes(targets, predictions))


def exact_match(targets: Texts, predictions: Texts) -> dict[str, float]:
  """How many predictions equal their targets but for case, punctuation and articles, as SQuAD counts them."""
  return {'exact_match': metrics.squad([[target] for target in targets], predictions)['em']}


def token_f1(targets: Texts, predictions: Texts) -> dict[str, float]:
  """F1 of the words that a prediction shares with its target, as SQuAD counts them."""
  return {'token_f1': metrics.squad([[target] for target in targets], predictions)['f1']}


def is_number(text: str) -> bool:
  """Whether a text is a finite number."""
  try:
    return bool(np.isfinite(float(text)))
  except ValueError:
    return False


def _numbers(targets: Texts, predictions: Texts) -> tuple[list[float], list[float]]:
  """Returns targets as numbers, and predictions too: the mean of the targets for one that is none."""
  if wrong := next((target for target in targets if not is_number(target)), None):
    raise ConfigError(f'The target {wrong!r} is no number, which a correlation needs; choose other metrics.')
  mean = float(np.mean([float(target) for target in targets]))
  return [float(target) for target in targets], [float(p) if is_number(p) else mean for p in predictions]


def pearson(targets: Texts, predictions: Texts) -> dict[str, float]:
  """Pearson's correlation; a prediction that is no number counts as the mean of the targets."""
  return metrics.pearson_corrcoef(*_numbers(targets, predictions))


def spearman(targets: Texts, predictions: Texts) -> dict[str, float]:
  """Spearman's correlation; a prediction that is no number counts as the mean of the targets."""
  return metrics.spearman_corrcoef(*_numbers(targets, predictions))


def correlation(targets: Texts, predictions: Texts) -> dict[str, float]:
  """Both correlations."""
  return pearson(targets, predictions) | spearman(targets, predictions)


_BY_NAME: dict[str, metrics.Metric] = {
  'accuracy': metrics.accuracy,
  'f1': f1,
  'matthews': matthews,
  'exact_match': exact_match,
  'token_f1': token_f1,
  'rouge': metrics.rouge,
  'bleu': metrics.bleu,
  'chrf': metrics.chrf,
  'pearson': pearson,
  'spearman': spearman,
  'correlation': correlation,
}
assert set(_BY_NAME) == set(METRICS)


def by_name(names: Sequence[str]) -> list[Callable[[Texts, Texts], dict[str, float]]]:
  """Returns the metrics of `config.METRICS` with these names, and the user's own, named `module:function`.

  Raises:
    ConfigError: one of the user's cannot be had.
  """
  return [load_object(name, 'TableConfig.metrics') if ':' in name else _BY_NAME[name] for name in names]
