"""What the runs of a sweep came to: from the files that runs leave, to a CSV and a table."""

import csv
import json

from switch_jax.sweep import results
from switch_jax.sweep.points import Point


def write_run(folder, loss=1.5, seconds=None, task='some_task'):
  """Writes what a run of seven steps leaves."""
  for place, line in (('train', {'step': 7, 'loss': 2.0}), (f'eval/{task}', {'step': 7, 'cross_ent_loss_text': loss})):
    (folder / place).mkdir(parents=True)
    (folder / place / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
  if seconds is not None:
    (folder / 'finished.json').write_text(json.dumps({'arguments': ['--x'], 'seconds': seconds}))


def test_columns_of_a_task_that_was_evaluated_too(tmp_path):
  """Both kinds of numbers have names of their own, wherever a version has written them."""
  for place, text in {
    'train': '{"step": 7, "loss": null}\n{"step": 8, "lo',
    'eval/a': '{"step": 7, "cross_ent_loss": 1.5, "accuracy": 0.5}\n',
    'eval/a.metrics': '{"step": 7, "accuracy": 50.0, "f1": 40.0}\n',
    'eval/mixture.metrics': '{"step": 7, "average": 45.0}\n',
    'eval/older': '{"step": 7, "f1": 30.0}\n',
  }.items():
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / 'metrics.jsonl').write_text(text)
  assert results.collect(tmp_path) == {
    'step': 7,
    'train/loss': None,
    'a/cross_ent_loss': 1.5,
    'a/accuracy': 0.5,
    'a.metrics/accuracy': 50.0,
    'a.metrics/f1': 40.0,
    'mixture.metrics/average': 45.0,
    'older.metrics/f1': 30.0,
  }


def test_parameters_are_those_of_the_newest_checkpoint(tmp_path):
  for step, count in ((5, 10), (20, 30)):
    (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
    (tmp_path / 'checkpoints' / str(step) / 'config.json').write_text(json.dumps({'parameters': count}))
  assert results.collect(tmp_path) == {'parameters': 30}


def test_what_a_finished_point_recorded(tmp_path):
  assert results.read_finished(tmp_path / 'none') is None
  write_run(tmp_path / 'a', seconds=2.5)
  assert results.read_finished(tmp_path / 'a') == {'arguments': ['--x'], 'seconds': 2.5}
  (tmp_path / 'a' / 'finished.json').write_text('{"argum')
  assert results.read_finished(tmp_path / 'a') is None


def test_a_row_for_each_point_and_a_column_for_each_name(tmp_path):
  write_run(tmp_path / 'a', seconds=61.7)
  points = [
    Point(name='a', gin_files=('x.gin', 'y.gin'), bindings={'LEARNING_RATE': 0.1}),
    Point(name='b', gin_files=(), bindings={'NUM_EXPERTS': 4}),
  ]
  found = results.rows(points, tmp_path, {'a': results.FINISHED_STATUS})
  numbers = {'step': 7, 'train/loss': 2.0, 'some_task/cross_ent_loss_text': 1.5}
  a = {'name': 'a', 'status': 'finished', 'seconds': 62, 'gin_file': 'x.gin y.gin', 'LEARNING_RATE': 0.1, **numbers}
  b = {'name': 'b', 'status': 'not run', 'seconds': None, 'NUM_EXPERTS': 4}
  assert found == [a, b]
  results.write_csv(found, tmp_path / results.SUMMARY)
  with open(tmp_path / results.SUMMARY, encoding='utf-8', newline='') as file:
    read = list(csv.DictReader(file))
  assert list(read[0]) == [*a, 'NUM_EXPERTS']
  assert read[0] == {**{name: str(value) for name, value in a.items()}, 'NUM_EXPERTS': ''}
  assert read[1] == dict.fromkeys(a, '') | {'name': 'b', 'status': 'not run', 'NUM_EXPERTS': '4'}


def test_the_table_is_in_columns():
  found = [
    {'name': 'dense', 'status': 'finished', 'step': 100, 'seconds': 12, 'a/cross_ent_loss_text': 1.25, 'x': 3},
    {'name': 'b', 'status': 'failed', 'seconds': None},
  ]
  assert results.table(found).splitlines() == [
    'name   status    step  seconds  held-out loss',
    'dense  finished  100   12       1.2500',
    'b      failed',
  ]
  two = results.table([found[0] | {'b/cross_ent_loss_text': 2.0}]).splitlines()
  assert two[0].split() == ['name', 'status', 'step', 'seconds', 'a', 'b']
  assert two[1].split()[-2:] == ['1.2500', '2.0000']
