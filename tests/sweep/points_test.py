"""The points of a sweep: how many, in which order, their names, and the bindings that gin reads back."""

import pytest

from switch_jax import gin_statements
from switch_jax.config import ConfigError, SweepConfig
from switch_jax.sweep.points import binding_text, make_points, point_arguments, result_folder


def test_seeds_are_outermost_then_points_then_the_grid():
  sweep = SweepConfig(
    grid={'LEARNING_RATE': (0.1, 0.2), 'BATCH_SIZE': (8, 16)},
    points=({'name': 'dense'}, {'name': 'switch', 'gin_file': 'a/moe.gin', 'NUM_EXPERTS': 4}),
    seeds=(0, 1),
  )
  points = make_points(sweep)
  assert len(points) == 16
  assert points[0].name == 'dense,LEARNING_RATE=0.1,BATCH_SIZE=8,RANDOM_SEED=0'
  assert points[1].name == 'dense,LEARNING_RATE=0.1,BATCH_SIZE=16,RANDOM_SEED=0'
  assert points[4].name == 'switch,LEARNING_RATE=0.1,BATCH_SIZE=8,RANDOM_SEED=0'
  assert points[8].name == 'dense,LEARNING_RATE=0.1,BATCH_SIZE=8,RANDOM_SEED=1'
  assert points[0].gin_files == ()
  assert points[4].gin_files == ('a/moe.gin',)
  assert points[4].bindings == {'NUM_EXPERTS': 4, 'LEARNING_RATE': 0.1, 'BATCH_SIZE': 8, 'RANDOM_SEED': 0}


def test_files_in_the_grid():
  points = make_points(SweepConfig(grid={'gin_file': ('a/x.gin', ('a/x.gin', 'a/y.gin'))}))
  assert [point.name for point in points] == ['gin_file=x', 'gin_file=x+y']
  assert points[1].gin_files == ('a/x.gin', 'a/y.gin')


def test_names_stay_as_points_are_added():
  few = make_points(SweepConfig(grid={'NUM_EXPERTS': (2,)}, seeds=(0,)))
  more = make_points(SweepConfig(grid={'NUM_EXPERTS': (8, 2)}, seeds=(1, 0)))
  assert few[0].name in {point.name for point in more}


@pytest.mark.parametrize(
  ('value', 'shown'),
  [
    (1e-3, 'config.MoeConfig.x=0.001'),
    ('adamw', 'config.MoeConfig.x=adamw'),
    (None, 'config.MoeConfig.x=None'),
    ('/some/a,b=1.5', 'config.MoeConfig.x=/some/a,b=1.5'),
    ('None', "config.MoeConfig.x='None'"),
    ('3', "config.MoeConfig.x='3'"),
    ('%MACRO', "config.MoeConfig.x='%MACRO'"),
    ('', "config.MoeConfig.x=''"),
    ((1, 'a'), "config.MoeConfig.x=(1, 'a')"),
    ({'inputs': 4}, "config.MoeConfig.x={'inputs': 4}"),
  ],
)
def test_gin_reads_back_exactly_the_value(value, shown):
  text = binding_text('config.MoeConfig.x', value)
  assert text == shown
  reader = gin_statements.Reader([])
  reader.read_flag(text.replace('config.MoeConfig.x', 'X'))
  assert reader.bindings[0].value == value
  assert type(reader.bindings[0].value) is type(value)


@pytest.mark.parametrize('values', [(True, 1, 1.0, '1', 'True'), ('a b', 'a_b', 'a/b'), ((1, 2), '(1,2)'), ('', None)])
def test_different_values_have_different_names(values):
  points = make_points(SweepConfig(grid={'X': values}))
  assert len({point.name for point in points}) == len(values)
  assert all('/' not in point.name and ' ' not in point.name for point in points)


def test_long_names_are_cut_and_stay_different():
  points = make_points(SweepConfig(grid={f'NAME_{i}': (1.123456789, 2.123456789) for i in range(8)}))
  assert len({point.name for point in points}) == 256
  assert max(len(point.name) for point in points) <= 160


def test_arguments_of_a_point_win_over_those_of_all():
  (point,) = make_points(SweepConfig(points=({'name': 'a', 'gin_file': 'own.gin', 'TRAIN_STEPS': 5},)))
  files, bindings = point_arguments(point, ['base.gin'], ['TRAIN_STEPS=9'], 'out/')
  assert files == ['base.gin', 'own.gin']
  assert bindings == ['TRAIN_STEPS=9', 'TRAIN_STEPS=5', 'MODEL_DIR=out/a']


def test_a_point_takes_the_result_of_another_of_its_seed_and_grid():
  sweep = SweepConfig(
    points=({'name': 'student', 'results': {'TEACHER_PATH': 'teacher', 'X': '../before/dense'}}, {'name': 'teacher'}),
    grid={'BATCH_SIZE': (8, 16)},
    seeds=(0, 1),
  )
  points = make_points(sweep)
  assert [point.name for point in points][:2] == [f'{x},BATCH_SIZE=8,RANDOM_SEED=0' for x in ('teacher', 'student')]
  student = points[-1]
  assert student.needs == ('teacher,BATCH_SIZE=16,RANDOM_SEED=1',)
  _, bindings = point_arguments(student, [], [], 'all/now')
  assert bindings[-3:] == [
    "TEACHER_PATH='all/now/teacher,BATCH_SIZE=16,RANDOM_SEED=1'".replace("'", ''),
    'X=all/before/dense,RANDOM_SEED=1',
    'MODEL_DIR=all/now/student,BATCH_SIZE=16,RANDOM_SEED=1',
  ]


@pytest.mark.parametrize(
  ('out', 'folder'), [('a/b/', 'a/x'), ('b', './x'), ('/b', '/x'), ('gs://bucket/a/b', 'gs://bucket/a/x')]
)
def test_the_folder_of_another_sweep_lies_beside(out, folder):
  assert result_folder(out, '../x') == folder


def test_points_that_wait_for_each_other():
  points = ({'name': 'a', 'results': {'X': 'b'}}, {'name': 'b', 'results': {'X': 'a'}})
  with pytest.raises(ConfigError, match='wait for each other: a needs b needs a'):
    make_points(SweepConfig(points=points))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({}, 'nothing varies'),
    ({'grid': {'X': ()}}, 'X has no value'),
    ({'grid': {'X': (1, 1)}}, 'X has a value twice'),
    ({'grid': {'X Y': (1,)}}, 'is no binding'),
    ({'grid': {'MODEL_DIR': ('a',)}}, 'each point has its own'),
    ({'grid': {'gin_file': (3,)}}, 'must be the path of a gin file'),
    ({'grid': {'X': (1,)}, 'points': ({'X': 2},)}, 'X is in the grid too'),
    ({'grid': {'RANDOM_SEED': (1,)}, 'seeds': (2,)}, 'binds RANDOM_SEED too'),
    ({'seeds': (1, 1)}, 'name each seed once'),
    ({'points': ({'name': ''},)}, 'a text that is not empty'),
    (
      {'points': ({'name': 'teacher'}, {'results': {'X': 'techer'}})},
      "takes X from 'techer', and no point has that name.*Did you mean 'teacher'",
    ),
    ({'points': ({'name': 'a', 'results': 'b'},)}, 'write {.INITIAL_CHECKPOINT_PATH'),
    ({'points': ({'name': 'a'}, {'X': 1, 'results': {'X': 'a'}})}, "binds X itself and takes it from 'a'"),
    ({'grid': {'results': ({'X': 'a'},)}}, 'is for points'),
  ],
)
def test_mistakes(fields, message):
  with pytest.raises(ConfigError, match=message):
    SweepConfig(**fields)


def test_two_points_of_one_name():
  with pytest.raises(ConfigError, match='would both be called same'):
    make_points(SweepConfig(points=({'name': 'same', 'X': 1}, {'name': 'same', 'X': 2})))
