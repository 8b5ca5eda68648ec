"""Metrics by name, on texts."""

import pytest

from switch_jax.config import METRICS, ConfigError
from switch_jax.tasks import named_metrics

TARGETS = ['pos', 'neg', 'pos', 'neu']
PREDICTIONS = ['pos', 'pos', 'pos', 'no such']


def compute(name, targets=TARGETS, predictions=PREDICTIONS):
  [metric] = named_metrics.by_name([name])
  return metric(targets, predictions)


def test_every_name_has_a_metric_that_is_best_for_right_predictions():
  numbers = ['1.5', '2', '4']
  texts = ['a first text', 'another text here', 'the last one of them']
  for name in METRICS:
    right = numbers if name in ('pearson', 'spearman', 'correlation') else texts
    assert list(compute(name, right, right).values()) == pytest.approx([100] * len(compute(name, right, right)))


def test_values_by_hand():
  assert compute('accuracy') == {'accuracy': 50.0}
  # pos: 2 hits, 2 wanted, 3 predicted; neg and neu: none.
  assert compute('f1')['f1'] == pytest.approx(100 * (4 / 5) / 3)
  assert compute('exact_match', ['The cat.'], ['cat'])['exact_match'] == 100
  assert compute('token_f1', ['the big cat'], ['cat'])['token_f1'] == pytest.approx(200 / 3)
  assert compute('matthews', ['a', 'b'], ['b', 'a']) == pytest.approx({'matthews_corrcoef': -100.0})
  assert set(compute('correlation', ['1', '2'], ['1', '3'])) == {'pearson_corrcoef', 'spearman_corrcoef'}
  assert set(compute('rouge', ['a b'], ['a b'])) == {'rouge1', 'rouge2', 'rougeLsum'}


def test_predictions_that_are_no_numbers_count_as_the_mean():
  found = compute('pearson', ['1', '2', '3'], ['1', 'words', '3'])
  assert found['pearson_corrcoef'] == pytest.approx(100)
  with pytest.raises(ConfigError, match="The target 'x' is no number, which a correlation needs"):
    compute('spearman', ['1', 'x'], ['1', '2'])


def test_white_space_around_texts_is_left_out():
  assert named_metrics.stripped(' a b\n') == 'a b'
