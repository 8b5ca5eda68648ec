"""The paper's Tables 6 and 7 from runs that have their losses; and what is missing is named."""

import pytest

from switch_jax.report.distillation import students
from switch_jax.report.series import make_series


def taught_by(teacher, **changes):
  return {'teacher_path': str(teacher), 'soft_weight': 0.25, 'initialize': ['attention'], **changes}


@pytest.fixture
def table(read_all):
  """Returns the function that makes the table of all runs under `tmp_path`, rows by label."""

  def make():
    runs = read_all()
    own = [run for run in runs if run.task == 'some_task']
    return {row.series.label: row for row in students(make_series(own, runs), runs)}

  return make


def test_table_6_of_the_paper(write_run, table):
  teacher = write_run('teacher', losses=(9.0, 1.444), experts=64, parameters=3_800_000_000)
  write_run('dense', losses=(9.0, 1.636), parameters=223_000_000)
  rows = {'distillation': 1.631, 'weights': 1.598, 'mix': 1.580, 'weights_alone': 1.639}
  for number, (name, loss) in enumerate(rows.items()):
    how = taught_by(teacher, soft_weight=number / 8)
    write_run(name, losses=(9.0, loss), parameters=223_000_000, distillation=how)
  found = table()
  assert {name: round(100 * row.share_kept.mean) for name, row in found.items()} == {
    'distillation': 3,
    'weights': 20,
    'mix': 29,
    'weights_alone': -2,
  }
  mix = found['mix']
  assert mix.compression == pytest.approx(1 - 223 / 3800)
  assert (mix.teacher, mix.dense, mix.parameters) == ('teacher', 'dense', 223_000_000)
  assert (mix.loss.mean, mix.teacher_loss.mean, mix.dense_loss.mean) == (1.580, 1.444, 1.636)
  assert mix.missing == ()


def test_shares_are_paired_by_seed(write_run, table):
  """The means alone would give another share: seed 0 keeps 1/2 of 2 nats, seed 1 keeps 1/4 of 1 nat."""
  for seed, (dense, student, teacher) in enumerate([(4.0, 3.0, 2.0), (3.0, 2.75, 2.0)]):
    folder = write_run(f'teacher_seed{seed}', seed, losses=(9.0, teacher), experts=4, parameters=4000)
    write_run(f'dense_seed{seed}', seed, losses=(9.0, dense))
    write_run(f'student_seed{seed}', seed, losses=(9.0, student), distillation=taught_by(folder))
  [row] = table().values()
  assert (row.share_kept.mean, row.share_kept.low, row.share_kept.high, row.share_kept.count) == (0.375, 0.25, 0.5, 2)
  assert (row.teacher, row.dense) == ('teacher', 'dense')
  assert row.compression == 0.75


def test_one_teacher_of_several_students_counts_once(write_run, table):
  teacher = write_run('teacher', losses=(9.0, 2.0), experts=4)
  for seed in (0, 1):
    write_run(f'dense_seed{seed}', seed, losses=(9.0, 4.0))
    write_run(f'student_seed{seed}', seed, losses=(9.0, 3.0), distillation=taught_by(teacher))
  [row] = table().values()
  assert (row.teacher_loss.count, row.teacher, row.share_kept.mean) == (1, 'teacher', 0.5)


def test_the_teacher_is_judged_at_the_step_that_taught(write_run, table):
  teacher = write_run('teacher', losses=(9.0, 2.0, 1.0), experts=4)
  write_run('dense', losses=(9.0, 4.0))
  record = {'teacher': {'path': str(teacher / 'checkpoints' / '20'), 'step': 20, 'parameters': 8000}}
  write_run('student', losses=(9.0, 3.0), distillation=taught_by(teacher), record=record)
  [row] = table().values()
  assert (row.teacher_loss.mean, row.share_kept.mean, row.teacher_parameters) == (2.0, 0.5, 8000)
  record['teacher']['step'] = 7
  write_run('late', losses=(9.0, 3.0), distillation=taught_by(teacher, temperature=2.0), record=record)
  assert table()['late'].missing == ('the teacher teacher has no held-out loss at step 7, the one that taught.',)


def test_a_missing_teacher_and_a_missing_control_are_named_and_nothing_is_made_up(write_run, table):
  write_run('student', seed=5, losses=(9.0, 3.0), distillation=taught_by('/else/where/teacher'))
  write_run('other_seed', seed=6, losses=(9.0, 4.0))
  write_run('other_rate', seed=5, losses=(9.0, 4.0), optimizer__learning_rate=0.5)
  write_run('longer', seed=5, losses=(9.0, 4.0), train_steps=80)
  [row] = table().values()
  assert row.share_kept.count == row.teacher_loss.count == row.dense_loss.count == 0
  assert row.compression is None
  assert row.missing == (
    'add the teacher of student: /else/where/teacher.',
    'add the dense control of student: the same model, data, optimizer and 40 steps, seed 5, with '
    'config.RunConfig.distillation=None.',
  )


def test_a_teacher_of_another_task_does_not_count(write_run, table):
  teacher = write_run('teacher', losses=(9.0, 1.0), experts=4, data__mixture_or_task_name='pretraining')
  write_run('dense', losses=(9.0, 4.0))
  write_run('student', losses=(9.0, 3.0), distillation=taught_by(teacher))
  [row] = table().values()
  assert row.share_kept.count == 0
  assert row.missing == (
    'the teacher teacher was evaluated on pretraining and not on some_task; add a teacher that was.',
  )


def test_a_teacher_without_a_gain_has_nothing_to_keep(write_run, table):
  teacher = write_run('teacher', losses=(9.0, 4.5), experts=4)
  write_run('dense', losses=(9.0, 4.0))
  write_run('student', losses=(9.0, 3.0), distillation=taught_by(teacher))
  [row] = table().values()
  assert row.share_kept.count == 0
  assert row.missing == ('the teacher of student is no better than the dense control: there is no gain to keep.',)


def test_one_seed_without_a_gain_leaves_no_share_of_the_lucky_others(write_run, table):
  for seed, teacher_loss in enumerate((2.0, 4.5)):
    teacher = write_run(f'teacher_seed{seed}', seed, losses=(9.0, teacher_loss), experts=4)
    write_run(f'dense_seed{seed}', seed, losses=(9.0, 4.0))
    write_run(f'student_seed{seed}', seed, losses=(9.0, 3.0), distillation=taught_by(teacher))
  [row] = table().values()
  assert row.share_kept.count == 0
  assert row.missing[0].startswith('the teacher of student_seed1 is no better')
