"""Which folders are runs, and what is said of files that are torn, half written or missing."""

import json
import math

import pytest

from switch_jax.config import ConfigError
from switch_jax.report.runs import find_folders, names_of, read_run


def read(folder):
  return read_run(find_folders([folder])[0][0], 'run')


def test_a_whole_run_has_no_problem(write_run):
  run, problems = read(write_run('a', seed=3, experts=4))
  assert problems == []
  assert (run.task, run.seed, run.parameters, run.moe['num_experts']) == ('some_task', 3, 1000, 4)
  assert [line['step'] for line in run.train] == [1, 10, 20, 30, 40]
  assert [line['cross_ent_loss'] for line in run.held_out] == [6.0, 3.0, 2.0]
  assert run.expert_tokens[-1] == {'step': 40, 'encoder_1': [8, 8, 8, 8], 'decoder_1': [0, 1, 2, 3]}


def test_null_is_no_number(write_run):
  run, _ = read(write_run('a', train=[{'step': 1, 'cross_ent_loss': None}]))
  assert math.isnan(run.train[0]['cross_ent_loss'])


def test_a_torn_last_line_is_left_out_and_named(write_run):
  folder = write_run('a')
  path = folder / 'train' / 'metrics.jsonl'
  path.write_text(path.read_text() + '{"step": 50, "cross')
  run, problems = read(folder)
  assert run.train[-1]['step'] == 40
  assert problems == [
    'run: the last line of train/metrics.jsonl is torn (killed while writing, or still running) and left out.'
  ]
  path.write_text(path.read_text().removesuffix('{"step": 50, "cross') + '{"step": 50}')  # may be a part of 500
  assert read(folder)[0].train[-1]['step'] == 40


def test_damaged_lines_in_between_are_left_out_and_named(write_run):
  folder = write_run('a')
  path = folder / 'train' / 'metrics.jsonl'
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b''.join([lines[0], b'\x00\xff\n', b'[1]\n', *lines[1:]]))
  run, problems = read(folder)
  assert [line['step'] for line in run.train] == [1, 10, 20, 30, 40]
  assert problems == ['run: train/metrics.jsonl is damaged in line 2, 3, which is left out.']


def test_a_half_written_checkpoint_gives_way_to_the_one_before(write_run):
  folder = write_run('a')
  (folder / 'checkpoints' / '60').mkdir()
  (folder / 'checkpoints' / '80').mkdir()
  (folder / 'checkpoints' / '80' / 'config.json').write_text('{"run"')
  (folder / 'checkpoints' / '100.orbax-checkpoint-tmp-1').mkdir()
  run, problems = read(folder)
  assert run.settings['train_steps'] == 40
  assert problems == [
    'run: config.json of checkpoint 80 is damaged.',
    'run: checkpoint 60 has no config.json (half written).',
  ]


def test_a_run_without_a_checkpoint_is_shown_under_the_task_it_was_evaluated_on(write_run):
  folder = write_run('a')
  (folder / 'checkpoints' / '40' / 'config.json').unlink()
  (folder / 'eval' / 'some_task.metrics').mkdir()
  (folder / 'eval' / 'some_task.metrics' / 'metrics.jsonl').write_text('')
  run, problems = read(folder)
  assert (run.task, run.settings) == ('some_task', {})
  assert 'its settings are not known' in problems[-1]


@pytest.mark.parametrize('folder', ['some_task.metrics', 'some_task'])
def test_a_run_that_was_only_evaluated_shows_that(tmp_path, folder):
  (tmp_path / 'eval' / folder).mkdir(parents=True)
  (tmp_path / 'eval' / folder / 'metrics.jsonl').write_text('{"step": 5, "accuracy": 50.0}\n')
  run, _ = read(tmp_path)
  assert (run.task, run.held_out) == ('some_task', [{'step': 5, 'accuracy': 50.0}])


def test_a_run_without_metrics_is_left_out(tmp_path):
  (tmp_path / 'a' / 'checkpoints').mkdir(parents=True)
  run, problems = read(tmp_path / 'a')
  assert run is None
  assert problems == ['run is left out: it has no metrics yet.']


def test_folders_of_runs_are_looked_through(write_run, tmp_path):
  write_run('sweep/a')
  write_run('sweep/seeds/b')
  (tmp_path / 'sweep' / 'notes').mkdir()
  folders, problems = find_folders([tmp_path / 'sweep', tmp_path / 'sweep' / 'a'])  # and nothing twice
  assert [folder.name for folder in folders] == ['a', 'b']
  assert problems == []


def test_numbers_in_names_are_in_their_order(write_run):
  paths = [write_run(name) for name in ('experts_16', 'experts_2', 'dense')]
  assert [p.name for p in find_folders([paths[0].parent])[0]] == ['dense', 'experts_2', 'experts_16']


def test_an_empty_folder_and_a_file_are_named(write_run, tmp_path):
  write_run('a')
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'file').write_text('')
  folders, problems = find_folders([tmp_path / name for name in ('a', 'empty', 'file')])
  assert [folder.name for folder in folders] == ['a']
  assert [problem.partition(' ')[2] for problem in problems] == [
    'holds no run: it has no checkpoints and no train and no eval.',
    'is a file; a run is a folder.',
  ]


def test_a_folder_that_is_not_there_is_an_error_with_the_nearest_name(write_run, tmp_path):
  write_run('quickstart')
  with pytest.raises(ConfigError, match=r"quikstart', and there is no such folder.*Did you mean 'quickstart'\?"):
    find_folders([tmp_path / 'quikstart'])


def test_names_are_the_shortest_that_differ(write_run):
  folders = [write_run(name) for name in ('one/a', 'two/a', 'two/b')]
  assert names_of(folders) == ['one/a', 'two/a', 'two/b']
  assert names_of(folders[1:]) == ['a', 'b']


def test_the_newest_file_of_experts_is_read_and_a_damaged_one_passed_over(write_run):
  folder = write_run('a', experts=2)
  place = folder / 'eval' / 'some_task'
  for step in (9, 20):
    (place / f'experts_{step}.json').write_text(
      json.dumps({'step': step, 'split': 'x', 'batches': 1, 'groups': [], 'layers': {}})
    )
  assert read(folder)[0].experts['step'] == 20
  (place / 'experts_100.json').write_text('{')
  run, problems = read(folder)
  assert run.experts['step'] == 20
  assert problems == ['run: experts_100.json is damaged; delete it and use --experts.']
