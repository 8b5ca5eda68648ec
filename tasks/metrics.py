"""The metrics of the paper's Table 5, on `(targets, predictions)` as SeqIO's evaluator hands them over; in percent.

The names of the results are those that T5 reports under. All raise a `ConfigError` without predictions or where targets
and predictions are not as many.
"""

import collections
import functools
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from switch_jax.config import ConfigError

Metric = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_SQUAD_REMOVED = str.maketrans('', '', string.punctuation)
_TRIVIA_QA_SPACES = str.maketrans(dict.fromkeys(string.punctuation + '\u2018\u2019\u00b4', ' '))


def _checked(metric: Metric) -> Metric:
  """Returns a metric that refuses what it cannot be computed on."""

  @functools.wraps(metric)
  def compute(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    if len(targets) != len(predictions):
      raise ConfigError(
        f'{metric.__name__} was given {len(targets)} targets and {len(predictions)} predictions; it needs one '
        'prediction for every target.'
      )
    if not len(targets):
      raise ConfigError(
        f'{metric.__name__} has no predictions to be computed on; the split is empty, or every example was left out.'
      )
    return {name: float(value) for name, value in metric(targets, predictions).items()}

  return compute


@_checked
def accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
  """How many predictions equal their targets."""
  return {
    'accuracy': 100 * np.mean([target == prediction for target, prediction in zip(targets, predictions, strict=True)])
  }


def class_f1(targets: np.ndarray, predictions: np.ndarray, number: int) -> float:
  """Returns the F1 of one class; 0 where there is neither a target nor a prediction of it."""
  hits = np.sum((targets == number) & (predictions == number))
  total = np.sum(targets == number) + np.sum(predictions == number)
  return 2 * hits / total if total else 0.0


@_checked
def f1(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """F1 of class 1 of two; a prediction that is neither counts as the wrong one."""
  targets, predictions = np.asarray(targets), np.asarray(predictions)
  predictions = np.where(np.isin(predictions, (0, 1)), predictions, 1 - targets)
  return {'f1': 100 * class_f1(targets, predictions, 1)}


@_checked
def mean_3class_f1(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """F1 averaged over three classes (CommitmentBank)."""
  targets, predictions = np.asarray(targets), np.asarray(predictions)
  return {'mean_3class_f1': 100 * np.mean([class_f1(targets, predictions, number) for number in range(3)])}


@_checked
def matthews_corrcoef(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """Matthews' correlation coefficient, in its form for any number of classes; 0 where either side is constant."""
  targets, predictions = np.asarray(targets), np.asarray(predictions)
  classes = np.unique(np.concatenate([targets, predictions]))
  t = (targets[:, None] == classes).sum(axis=0).astype(np.float64)
  p = (predictions[:, None] == classes).sum(axis=0).astype(np.float64)
  total = len(targets)
  covariance = np.sum(targets == predictions) * total - t @ p
  scale = np.sqrt(total**2 - p @ p) * np.sqrt(total**2 - t @ t)
  return {'matthews_corrcoef': 100 * covariance / scale if scale else 0.0}


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
  """Returns Pearson's correlation; NaN where either side is constant, since there is none."""
  x, y = x - x.mean(), y - y.mean()
  scale = np.sqrt((x @ x) * (y @ y))
  return float(x @ y / scale) if scale else float('nan')


def _ranks(values: np.ndarray) -> np.ndarray:
  """Returns the rank of every value, the mean of the ranks for those that are equal."""
  _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
  last = np.cumsum(counts)
  return ((last - counts + 1 + last) / 2)[inverse]


@_checked
def pearson_corrcoef(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
  """Pearson's correlation; NaN if all predictions are the same."""
  return {'pearson_corrcoef': 100 * _correlation(np.asarray(targets, float), np.asarray(predictions, float))}


@_checked
def spearman_corrcoef(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
  """Spearman's correlation, that is Pearson's of the ranks; NaN if all predictions are the same."""
  targets, predictions = (_ranks(np.asarray(values, float)) for values in (targets, predictions))
  return {'spearman_corrcoef': 100 * _correlation(targets, predictions)}


@_checked
def multirc_f1(targets: Sequence[Mapping], predictions: Sequence[Mapping]) -> dict[str, float]:
  """F1 over all answers of all questions (F1a)."""
  return f1([target['value'] for target in targets], [prediction['value'] for prediction in predictions])


@_checked
def multirc_exact_match(targets: Sequence[Mapping], predictions: Sequence[Mapping]) -> dict[str, float]:
  """How many questions have all their answers judged rightly."""
  right = collections.defaultdict(lambda: True)
  for target, prediction in zip(targets, predictions, strict=True):
    right[target['group']] &= target['value'] == prediction['value']
  return {'exact_match': 100 * np.mean(list(right.values()))}


def normalize_squad(text: str) -> str:
  """Returns a text as SQuAD's evaluation compares it: no case, punctuation, articles, or superfluous spaces."""
  return ' '.join(_ARTICLES.sub(' ', text.lower().translate(_SQUAD_REMOVED)).split())


def normalize_trivia_qa(text: str) -> str:
  """Returns a text as TriviaQA's evaluation compares it: punctuation is a space; no case, articles, or more spaces."""
  return ' '.join(_ARTICLES.sub(' ', text.lower().translate(_TRIVIA_QA_SPACES)).split())


def _token_f1(target: str, prediction: str) -> float:
  """Returns the F1 of the words of two normalised texts."""
  target_words, words = target.split(), prediction.split()
  common = sum((collections.Counter(target_words) & collections.Counter(words)).values())
  return 2 * common / (len(target_words) + len(words)) if common else 0.0


def _best_over_answers(
  targets: Sequence[Sequence[str]], predictions: Sequence[str], normalize: Callable[[str], str]
) -> dict[str, float]:
  exact, overlap = [], []
  for answers, prediction in zip(targets, predictions, strict=True):
    if not len(answers):
      raise ConfigError('An example has no right answer to compare with; use a split with answers.')
    answers, prediction = [normalize(answer) for answer in answers], normalize(prediction)
    exact.append(prediction in answers)
    overlap.append(max(_token_f1(answer, prediction) for answer in answers))
  return {'em': 100 * np.mean(exact), 'f1': 100 * np.mean(overlap)}


@_checked
def squad(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Exact match and word F1, each the best over the right answers."""
  return _best_over_answers(targets, predictions, normalize_squad)


@_checked
def trivia_qa(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """The same after TriviaQA's normalisation; `em` is what Table 5 has for all closed-book tasks."""
  return _best_over_answers(targets, predictions, normalize_trivia_qa)


@_checked
def record(targets: Sequence[Mapping], predictions: Sequence[Mapping]) -> dict[str, float]:
  """Exact match and word F1 of one prediction a query, whichever of its examples comes first."""
  first = {}
  for target, prediction in zip(targets, predictions, strict=True):
    first.setdefault(target['group'], (target['value'], prediction['value']))
  return squad(*zip(*first.values(), strict=True))


@_checked
def rouge(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Rouge-1, Rouge-2 and Rouge-Lsum, F-measures; the best over the right answers where there are several.

  A sentence ends at " . ", as in CNN/DailyMail. T5 reports the middle of a bootstrap, which is this mean up to chance.
  """
  from rouge_score import rouge_scorer

  scorer = rouge_scorer.RougeScorer(['rouge1', 'rouge2', 'rougeLsum'])
  sums = collections.Counter()
  for answers, prediction in zip(targets, predictions, strict=True):
    answers = [answers] if isinstance(answers, str) else answers
    prediction = prediction.replace(' . ', ' .\n')
    scores = [scorer.score(answer.replace(' . ', ' .\n'), prediction) for answer in answers]
    for name in scorer.rouge_types:
      sums[name] += max(score[name].fmeasure for score in scores)
  return {name: 100 * sums[name] / len(targets) for name in scorer.rouge_types}


def _ngrams(text: str, order: int) -> collections.Counter:
  return collections.Counter(text[i : i + order] for i in range(len(text) - order + 1))


@_checked
def chrf(targets: Sequence[str], predictions: Sequence[str], max_order: int = 6, beta: float = 2.0) -> dict[str, float]:
  """ChrF2: F-measure of character n-grams up to 6 of the whole corpus, white space left out, recall counted twice."""
  counts = np.zeros((max_order, 3))  # common, predicted, wanted
  for target, prediction in zip(targets, predictions, strict=True):
    target, prediction = ''.join(target.split()), ''.join(prediction.split())
    for order in range(1, max_order + 1):
      wanted, predicted = _ngrams(target, order), _ngrams(prediction, order)
      counts[order - 1] += (wanted & predicted).total(), predicted.total(), wanted.total()
  used = counts[(counts[:, 1] > 0) & (counts[:, 2] > 0)]
  if not len(used):
    return {'chrf': 0.0}
  precision, recall = np.mean(used[:, 0] / used[:, 1]), np.mean(used[:, 0] / used[:, 2])
  scale = beta**2 * precision + recall
  return {'chrf': 100 * (1 + beta**2) * precision * recall / scale if scale else 0.0}


# Scripts that put no spaces between words: Chinese and Japanese, Thai, Lao, Burmese, Khmer.
_WITHOUT_SPACES = re.compile('[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]')


@_checked
def bleu(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """sacreBLEU's BLEU of the whole corpus, on words; on characters where more than half of the targets have no words."""
  import sacrebleu

  by_characters = sum(bool(_WITHOUT_SPACES.search(target)) for target in targets) > len(targets) / 2
  scorer = sacrebleu.BLEU(tokenize='char' if by_characters else '13a')
  return {'bleu': scorer.corpus_score(list(predictions), [list(targets)]).score}


def by_group(*wanted: Metric) -> Metric:
  """Returns metrics over all examples, and over those of each group (language).

  Args:
    wanted: metrics of values.

  Returns:
    A metric of targets `{'value', 'group'}` and predictions that are values. Its results are those of the metrics;
    for each name also `name/group`, and `name_mean_over_groups`, in which every group counts the same.
  """

  def by_group(targets: Sequence[Mapping], predictions: Sequence[Any]) -> dict[str, float]:
    values = [target['value'] for target in targets]
    results = {}
    numbers = collections.defaultdict(list)
    for number, target in enumerate(targets):
      numbers[target['group']].append(number)
    for metric in wanted:
      results |= (found := metric(values, predictions))
      parts = {
        group: metric([values[i] for i in chosen], [predictions[i] for i in chosen])
        for group, chosen in sorted(numbers.items())
      }
      for name in found:
        results |= {f'{name}/{group}': part[name] for group, part in parts.items()}
        results[f'{name}_mean_over_groups'] = np.mean([part[name] for part in parts.values()])
    return results

  return _checked(by_group)
