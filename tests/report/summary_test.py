"""The tables: what runs came to, and losses by group, worked out by hand."""

import math

import pytest

from switch_jax.report.series import make_series
from switch_jax.report.summary import at_the_end, furthest, group_losses, input_wait, last_step, summarize


def test_a_row_says_what_the_seeds_came_to(write_run, read_all):
  """The training loss is that of the last tenth of the lines, here one line: 3 - 40 / 40."""
  write_run('a_seed0', 0, experts=4, parameters=5000)
  write_run('a_seed1', 1, losses=(6.0, 3.0, 2.5), experts=4, parameters=5000)
  [series] = make_series(read_all())
  row = summarize(series)
  assert (row['parameters'], row['experts'], row['router']) == (5000, 4, 'top1')
  assert (row['steps'], row['evaluated_at']) == ((40, 40, 40), 40)
  assert (row['held_out'].mean, row['held_out'].count) == (2.25, 2)
  assert row['training'].mean == 2.0
  assert row['seconds_per_step'].mean == pytest.approx(0.1)
  assert row['input_wait'].mean == pytest.approx(0.02)
  assert row['dropped'].mean == pytest.approx(0.1)


def test_a_seed_that_is_not_as_far_is_left_out_of_the_held_out_loss(write_run, read_all):
  write_run('s0', 0, losses=(6.0, 3.0, 2.0))
  write_run('s1', 1, losses=(6.0, 3.5))
  [series] = make_series(read_all())
  assert [run.name for run in furthest(series)] == ['s0']
  row = summarize(series)
  assert (row['held_out'].mean, row['held_out'].count, row['evaluated_at']) == (2.0, 1, 40)


def test_a_run_that_was_never_evaluated(write_run, read_all):
  write_run('a', losses=(), train=[{'step': step, 'cross_ent_loss': None} for step in (1, 7)])
  [run] = read_all()
  assert last_step(run) == 7
  [series] = make_series([run])
  row = summarize(series)
  assert row['evaluated_at'] is None
  assert (row['held_out'].count, row['training'].count, row['input_wait'].count) == (0, 0, 0)


def test_the_end_of_a_run_is_the_last_tenth_of_its_lines(write_run, read_all):
  write_run('a', train=[{'step': step, 'cross_ent_loss': float(step)} for step in range(1, 22)])
  [run] = read_all()
  assert at_the_end(run, 'cross_ent_loss') == 20.0  # of 21 lines the last three: 19, 20, 21
  assert math.isnan(at_the_end(run, 'fraction_dropped'))


def test_waiting_is_weighted_by_time():
  lines = [
    {'step': 1, 'steps_per_second': 0.01, 'input_wait_fraction': 1.0},  # compilation: does not count
    {'step': 11, 'steps_per_second': 10.0, 'input_wait_fraction': 0.5},  # 1 s
    {'step': 21, 'steps_per_second': 2.5},  # not known
    {'step': 31, 'steps_per_second': 10 / 3, 'input_wait_fraction': 0.1},  # 3 s
  ]
  assert input_wait(lines) == pytest.approx((0.5 * 1 + 0.1 * 3) / 4)
  assert math.isnan(input_wait(lines[:1]))


def test_losses_by_group(write_run, read_all):
  folder = write_run('a')
  line = (
    '{"step": 60, "cross_ent_loss": 1.5, "cross_ent_loss/de": 1.0, "target_tokens/de": 70, "cross_ent_loss/fi": 2.0}'
  )
  path = folder / 'eval' / 'some_task' / 'metrics.jsonl'
  path.write_text(path.read_text() + line + '\n')
  (de, de_tokens, [de_loss]), (fi, fi_tokens, [fi_loss]) = group_losses(make_series(read_all()))
  assert (de, de_tokens, de_loss.mean) == ('de', 70.0, 1.0)
  assert (fi, fi_loss.mean) == ('fi', 2.0)
  assert math.isnan(fi_tokens)
