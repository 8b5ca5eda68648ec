"""Seeds to bands, settings that differ, and runs by task."""

import math

import pytest

from switch_jax.report.series import MAX_POINTS, curve, differences, group_by_task, make_series, spread


def test_the_spread_of_one_two_and_three():
  assert spread([]).count == 0
  assert math.isnan(spread([math.nan]).mean)
  assert (spread([2.0]).mean, spread([2.0]).count) == (2.0, 1)
  assert math.isnan(spread([2.0]).low)
  assert spread([1.0, 4.0, math.nan]).__dict__ == {'mean': 2.5, 'low': 1.0, 'high': 4.0, 'count': 2}
  three = spread([1.0, 2.0, 6.0])
  assert three.mean == 3.0
  assert three.half == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
  assert (three.low, three.high) == (three.mean - three.half, three.mean + three.half)


def test_runs_that_differ_in_the_seed_are_one_series(write_run, read_all):
  for seed, loss in enumerate((2.0, 2.2, 2.4)):
    write_run(f'small,RANDOM_SEED={seed}', seed, losses=(6.0, 3.0, loss))
  write_run('large,RANDOM_SEED=0', 0, losses=(6.0, 2.0, 1.0), model__emb_dim=128)
  large, small = make_series(read_all())
  assert (large.label, small.label) == ('large', 'small')
  assert [run.seed for run in small.runs] == [0, 1, 2]
  found = curve(small, lambda run: run.held_out, 'cross_ent_loss')
  assert found['steps'] == [0, 20, 40]
  assert found['mean'] == pytest.approx([6.0, 3.0, 2.2])
  assert found['high'] == pytest.approx([6.0, 3.0, 2.4])
  assert found['count'] == [3, 3, 3]
  assert differences([large, small]) == [('model.emb_dim', [128, 64])]


def test_a_seed_that_is_not_as_far_does_not_end_the_line(write_run, read_all):
  write_run('s0', 0, losses=(6.0, 3.0, 2.0))
  write_run('s1', 1, losses=(6.0, 3.5))
  [series] = make_series(read_all())
  found = curve(series, lambda run: run.held_out, 'cross_ent_loss')
  assert found['mean'] == [6.0, 3.25, 2.0]
  assert found['count'] == [2, 2, 1]


def test_the_same_run_twice_is_no_second_seed(write_run, read_all):
  for name in ('a', 'b'):
    write_run(name, 0)
  assert [(s.label, len(s.runs)) for s in make_series(read_all())] == [('a', 1), ('b', 1)]


def test_a_field_that_older_checkpoints_lack_is_no_difference(write_run, read_all):
  write_run('a', 0, new_field=None)
  write_run('b', 1)
  [series] = make_series(read_all())
  assert len(series.runs) == 2


def test_runs_that_began_with_runs_of_their_own_seed_are_one_series(write_run, read_all):
  for seed in (0, 1):
    teacher = write_run(f'teacher_seed{seed}', seed, experts=4)
    begun = {'teacher_path': str(teacher / 'checkpoints' / '40'), 'soft_weight': 0.25, 'teacher_logits': None}
    write_run(f'student_seed{seed}', seed, distillation=begun)
    write_run(f'far_seed{seed}', seed, initial_checkpoint_path=f'/else/where/seed_{seed}')
  series = make_series(read_all())
  assert [(s.label, len(s.runs)) for s in series] == [('far', 2), ('student', 2), ('teacher', 2)]
  differing = dict(differences(series))
  assert differing['distillation.teacher_path'] == [None, 'teacher', None]
  assert differing['initial_checkpoint_path'] == ['/else/where', None, None]
  assert differing['model.moe.num_experts'] == [None, None, 4]
  assert 'model.moe.router' not in differing  # what only one kind of model has says nothing of the others


def test_tasks_and_vocabularies_are_kept_apart(write_run, read_all):
  write_run('a', 0)
  write_run('b', 0, data__mixture_or_task_name='other_task')
  write_run('c', 0, record={'vocabulary': {'digest': 'w', 'size': 1000}})
  write_run('d', 1)
  grouped = group_by_task(read_all())
  assert {task: [run.name for run in runs] for task, runs in grouped.items()} == {
    'some_task, 64 / 14 tokens, vocabulary of 359': ['a', 'd'],
    'other_task': ['b'],
    'some_task, 64 / 14 tokens, vocabulary of 1000': ['c'],
  }


def test_long_curves_are_means_of_neighbours(write_run, read_all):
  train = [{'step': step, 'cross_ent_loss': float(step % 2)} for step in range(1, 4 * MAX_POINTS + 1)]
  write_run('a', train=train)
  [series] = make_series(read_all())
  found = curve(series, lambda run: run.train, 'cross_ent_loss')
  assert len(found['steps']) == MAX_POINTS
  assert found['steps'][:2] == [2.5, 6.5]
  assert found['mean'] == [0.5] * MAX_POINTS
