"""What a step has cost: seconds and tokens since step 0."""

import numpy as np

from switch_jax.report.timeline import column, cumulate, seconds_per_step, tokens_per_step


def test_seconds_and_tokens_are_added_up():
  lines = [
    {'step': 1, 'steps_per_second': 0.01, 'target_tokens_per_second': 1.0},  # compilation
    {'step': 11, 'steps_per_second': 10.0, 'target_tokens_per_second': 1000.0},
    {'step': 21, 'steps_per_second': 5.0, 'target_tokens_per_second': 1000.0},
    {'step': 31, 'target_tokens': 50.0},  # a line without a speed: the median
  ]
  np.testing.assert_allclose(seconds_per_step(lines), [np.nan, 0.1, 0.2, np.nan])
  timeline = cumulate(lines)
  np.testing.assert_allclose(timeline.seconds, [0.15, 1.15, 3.15, 4.65])
  np.testing.assert_allclose(timeline.tokens, [100, 1100, 3100, 3600])
  at = timeline.at(np.array([0, 16, 40]))
  np.testing.assert_allclose(at['seconds'], [0, 2.15, np.nan])
  np.testing.assert_allclose(at['tokens'], [0, 2100, np.nan])


def test_a_run_that_tells_no_speed_has_no_seconds():
  timeline = cumulate([{'step': 1}, {'step': 2}])
  assert np.isnan(timeline.seconds).all()
  assert np.isnan(cumulate([]).at(np.array([5.0]))['seconds']).all()


def test_a_metric_that_a_line_lacks_is_nan():
  np.testing.assert_array_equal(column([{'step': 1, 'a': 2}, {'step': 2}], 'a'), [2.0, np.nan])


def test_tokens_of_a_step_are_the_mean_since_the_line_before():
  lines = [
    {'step': 10, 'steps_per_second': 4.0, 'target_tokens_per_second': 200.0, 'target_tokens': 7.0},
    {'step': 20, 'steps_per_second': 0.0, 'target_tokens_per_second': 0.0, 'target_tokens': 7.0},
    {'step': 30},
  ]
  np.testing.assert_array_equal(tokens_per_step(lines), [50.0, 7.0, np.nan])
