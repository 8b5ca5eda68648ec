"""What evaluation writes down: numbers by step, predictions, averages of a mixture, one line for people."""

import json

import numpy as np
import pytest

from switch_jax.folders.metric_lines import read_metrics
from switch_jax.inference.evaluation_records import EvaluationFiles, mixture_averages, one_line, plain_numbers


class Scalar:
  """A metric as SeqIO wraps it."""

  value = np.float32(0.5)


def test_only_numbers_are_kept():
  metrics = {'a': 1, 'b': np.float32(2.5), 'c': Scalar(), 'text': 'x', 'histogram': np.zeros(3), 'd': True}
  found = plain_numbers(metrics)
  assert found == {'a': 1.0, 'b': 2.5, 'c': 0.5, 'd': 1.0}
  assert {type(value) for value in found.values()} == {float}


def test_metrics_of_single_groups_are_counted_and_not_printed():
  numbers = {'chrf': 20.0, 'chrf/de': 30.0, 'chrf/fr': 10.0, 'chrf_mean_over_groups': 20.0, 'f1/a': 1.5}
  assert one_line(numbers) == 'chrf 20, chrf_mean_over_groups 20, f1/a 1.5, 2 more by group'
  at_capacity = {f'{name}/capacity_2.0': value for name, value in numbers.items()}
  assert one_line(at_capacity).startswith('chrf/capacity_2.0 20, chrf_mean_over_groups/capacity_2.0 20, f1/a')
  assert one_line({}) == 'no numbers'


def test_averages_of_a_mixture_weigh_tasks_alike():
  averages = mixture_averages([{'accuracy': 50.0}, {'f1': 80.0, 'em': 60.0, 'f1/capacity_1.0': 20.0}, {'accuracy': 70}])
  assert averages['accuracy'] == 60.0
  assert averages['f1'] == 80.0
  assert averages['average'] == pytest.approx((50 + 70 + 70) / 3)
  assert averages['average/capacity_1.0'] == 20.0


@pytest.fixture
def files(tmp_path):
  made = EvaluationFiles(tmp_path, ['a', 'b'])
  yield made
  made.close()


def test_steps_are_in_rising_order_whenever_they_were_evaluated(files, tmp_path, capsys):
  files.write_metrics(20, {'a': {'f1': 2.0, 'note': 'no number'}, 'b': {'em': 4.0}})
  files.write_metrics(10, {'a': {'f1': 1.0}})
  files.write_metrics(20, {'a': {'em': 3.0}})  # beside what is there
  assert read_metrics(tmp_path / 'eval' / 'a.metrics' / 'metrics.jsonl') == [
    {'step': 10, 'f1': 1.0},
    {'step': 20, 'f1': 2.0, 'em': 3.0},
  ]
  assert files.steps() == {20}  # of all tasks
  shown = capsys.readouterr().out.splitlines()
  assert shown[0] == '  a: f1 2'
  assert shown[2] == '  in ' + ', '.join(f'{tmp_path}/eval/{name}.metrics/metrics.jsonl' for name in 'ab')


def test_predictions_are_replaced_whole(files, tmp_path):
  path = tmp_path / 'predictions' / 'a' / '10_capacity_2.0.jsonl'
  for records in ([{'prediction': 'ä'}, {'prediction': 'b'}], [{'prediction': 'ü'}]):
    files.write_predictions('a', 10, '_capacity_2.0', records)
    assert [json.loads(line) for line in path.read_text().splitlines()] == records
  assert path.read_text() == '{"prediction": "ü"}\n'  # legible, not escaped


def test_other_hosts_write_nothing(tmp_path):
  files = EvaluationFiles(tmp_path, ['a'], active=False)
  files.write_metrics(10, {'a': {'f1': 1.0}})
  files.write_predictions('a', 10, '', [{'prediction': 'x'}])
  files.close()
  assert list(tmp_path.iterdir()) == []
