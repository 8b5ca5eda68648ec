"""Metrics against numbers worked out by hand, and what they refuse."""

import math

import pytest

from switch_jax.config import ConfigError
from tasks import answers, metrics


def test_accuracy_and_f1():
  targets, predictions = [1, 1, 1, 0, 0], [1, 1, 0, 1, -1]  # the -1 counts as the wrong one, 1
  assert metrics.accuracy(targets, predictions) == {'accuracy': 40.0}
  assert metrics.f1(targets, predictions) == pytest.approx({'f1': 100 * 2 * 2 / (3 + 4)})
  assert metrics.f1([0, 0], [0, 0]) == {'f1': 0.0}


def test_f1_of_three_classes():
  # Class 0: 1 of 1 and 2; class 1: 1 of 2 and 1; class 2: nothing.
  assert metrics.mean_3class_f1([0, 1, 1], [0, 0, 1]) == pytest.approx(
    {'mean_3class_f1': 100 * (2 / 3 + 2 / 3 + 0) / 3}
  )


def test_matthews():
  # 3 true positives, 1 false negative, 1 false positive, 1 true negative: (3 * 1 - 1 * 1) / sqrt(4 * 4 * 2 * 2)
  targets, predictions = [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0]
  assert metrics.matthews_corrcoef(targets, predictions) == pytest.approx({'matthews_corrcoef': 25.0})
  assert metrics.matthews_corrcoef([1, 0], [1, 1]) == {'matthews_corrcoef': 0.0}


def test_correlations():
  targets, predictions = [1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 9.0, 16.0]
  assert metrics.spearman_corrcoef(targets, predictions) == pytest.approx({'spearman_corrcoef': 100.0})
  assert metrics.pearson_corrcoef(targets, predictions)['pearson_corrcoef'] == pytest.approx(98.43740)
  assert metrics.spearman_corrcoef([1, 2, 3], [5, 5, 7])['spearman_corrcoef'] == pytest.approx(50 * math.sqrt(3))
  assert math.isnan(metrics.pearson_corrcoef([1, 2], [3, 3])['pearson_corrcoef'])


def test_multirc_by_question():
  targets = [{'value': v, 'group': g} for v, g in ((1, (0, 0)), (0, (0, 0)), (1, (1, 0)))]  # (paragraph, question)
  predictions = [{'value': v} for v in (1, 1, 1)]
  assert metrics.multirc_exact_match(targets, predictions) == {'exact_match': 50.0}
  assert metrics.multirc_f1(targets, predictions) == pytest.approx({'f1': 100 * 4 / 5})


def test_record_counts_a_query_once():
  targets = [{'value': ['Rome', 'Roma'], 'group': g} for g in ((1, 1), (1, 1), (1, 2))]
  predictions = [{'value': v} for v in ('the Rome.', 'Paris', 'Roma Termini')]
  assert metrics.record(targets, predictions) == pytest.approx({'em': 50.0, 'f1': 100 * (1 + 2 / 3) / 2})


def test_normalisation_of_squad_and_trivia_qa():
  assert metrics.normalize_squad("The  U.S.'s co-op, an A_b") == 'uss coop ab'
  assert metrics.normalize_trivia_qa('The  U.S.\u2019s co-op, an A_b') == 'u s s co op b'
  assert metrics.squad([['a cat', 'two dogs']], ['The two cats']) == pytest.approx({'em': 0.0, 'f1': 50.0})
  assert metrics.trivia_qa([['Mary-Kate', 'x']], ['mary kate']) == {'em': 100.0, 'f1': 100.0}


def test_rouge():
  scores = metrics.rouge(['the cat sat on the mat'], ['the cat on the mat'])
  assert scores['rouge1'] == pytest.approx(100 * 10 / 11)
  assert scores['rouge2'] == pytest.approx(100 * 6 / 9)
  assert metrics.rouge([['nothing', 'the cat']], ['the cat'])['rouge2'] == pytest.approx(100.0)


def test_chrf():
  assert metrics.chrf(['Guten Tag'], ['Guten Tag']) == pytest.approx({'chrf': 100.0})
  assert metrics.chrf(['abc'], ['xyz']) == {'chrf': 0.0}
  # Orders 1 and 2: precision 2/3 and 1/2, recall 2/2 and 1/1.
  expected = 100 * 5 * (7 / 12) / (4 * 7 / 12 + 1)
  assert metrics.chrf(['ab'], ['abc']) == pytest.approx({'chrf': expected})


@pytest.mark.parametrize('metric', [metrics.accuracy, metrics.squad, metrics.rouge, metrics.matthews_corrcoef])
def test_metrics_without_predictions(metric):
  with pytest.raises(ConfigError, match=f'{metric.__name__} has no predictions'):
    metric([], [])
  with pytest.raises(ConfigError, match='1 targets and 0 predictions'):
    metric([['x']], [])


def test_labels_outside_the_set():
  label = answers.label(('no', 'yes'))
  assert [label('yes'), label('yes '), label('')] == [1, -1, -1]
  assert label('no', is_target=True) == 0
  with pytest.raises(ConfigError, match="'maybe' is not one of the labels no, yes; check"):
    label('maybe', is_target=True)
  with pytest.raises(ConfigError, match='without labels'):
    label('<unk>', is_target=True)
  assert (answers.number('3.8'), answers.number('much')) == (3.8, -1.0)
  with pytest.raises(ConfigError, match="'much' is not a number"):
    answers.number('much', is_target=True)


@pytest.mark.parametrize(
  ('referent', 'prediction', 'expected'),
  [
    ('Bob', 'bob', 1),
    ('the fuzzy bunny', 'bunny', 1),
    ('bunny', 'a fuzzy bunny', 1),
    ("Bob's hat", 'Bob', 0),
    ('Tom', 'Mitchell', 0),
    ('Tom', 'the', -1),
    ('Tom', '', -1),
  ],
)
def test_referents_of_winograd_schemas(referent, prediction, expected):
  assert answers.wsc(prediction, {'targets_pretokenized': referent.encode()}) == expected
