"""What is compared between hosts, and how a difference is named."""

from switch_jax.config import PredictionConfig
from switch_jax.parallel.agreement import differences, require_agreement, require_same_run


def test_equal_values_have_no_difference():
  assert differences([{'a': 1, 'b': [1.5, None]}] * 3) == []


def test_differences_name_setting_values_and_processes():
  values = [{'a': 1, 'b': 'x', 'c': None}, {'a': 2, 'b': 'x'}, {'a': 1, 'b': 'y', 'c': None}]
  assert differences(values) == [
    'a is 1 in processes 0 and 2 of 3, 2 in process 1 of 3',
    'b is "x" in processes 0 and 1 of 3, "y" in process 2 of 3',
  ]


def test_types_differ_too():
  assert differences([{'a': 1}, {'a': '1'}]) == ['a is 1 in process 0 of 2, "1" in process 1 of 2']
  assert differences([{}, {'a': False}]) == ['a is null in process 0 of 2, false in process 1 of 2']


def test_one_process_compares_nothing():
  require_agreement('colour', {'sky': 'blue'})
  require_same_run(PredictionConfig(model_dir='x', input_file='a', output_file='b', batch_size=1))
