"""Metrics against numbers worked out by hand, and what they refuse."""

import math

import pytest

from switch_jax.config import ConfigError
from switch_jax.tasks import metrics


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


def test_metrics_by_group():
  metric = metrics.by_group(metrics.chrf, metrics.bleu, metrics.accuracy)
  pairs = {'German': 'das ist ein kleines Haus', 'Thai': 'บ้านหลังเล็กหลังหนึ่ง'}
  targets = [{'value': text, 'group': language} for language, text in pairs.items()]
  found = metric(targets, list(pairs.values()))
  for name in ('bleu/German', 'bleu/Thai', 'chrf_mean_over_groups', 'chrf', 'accuracy/Thai'):
    assert found[name] == pytest.approx(100)
  found = metric(targets, ['das ist ein Haus', ''])
  assert found['bleu/Thai'] == found['chrf/Thai'] == 0
  assert found['chrf_mean_over_groups'] == found['chrf/German'] / 2 > 0


def test_bleu_counts_words_or_characters():
  assert metrics.bleu(['a b c d e'], ['a b c d f'])['bleu'] == pytest.approx(
    100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
  )
  # Without spaces the words are characters: four of five are right.
  assert metrics.bleu(['小房子很美'], ['小房子很大'])['bleu'] == pytest.approx(
    100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
  )
