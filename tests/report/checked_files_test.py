"""Files of runs that are valid JSON of wrong shapes: named and left out, the rest of the report is there."""

import json
import os

import pytest

from switch_jax.report import checked_files
from switch_jax.report.__main__ import main
from switch_jax.report.runs import find_folders, read_run

LAYER = {'expert_tokens': [3, 0], 'token_bits': 0.5, 'token_bits_by_chance': 0.0, 'favourites': [[], []]}
EXPERTS = {'step': 40, 'split': 'x', 'batches': 1, 'router': 'top1', 'groups': [], 'layers': {'encoder_1': LAYER}}


def test_whole_files_pass(write_run):
  run, problems = read_run(find_folders([write_run('a', experts=2)])[0][0], 'a')
  assert problems == []
  assert not checked_files.wrong_settings(run.record)
  assert not checked_files.wrong_settings({})
  assert checked_files.is_experts(EXPERTS)
  favourite = {'token': 1, 'piece': 'a', 'count': 1, 'of': 2, 'bits': 1.0}
  layer = LAYER | {
    'group_tokens': [[1, 0]],
    'group_bits': 0.1,
    'group_bits_by_chance': 0,
    'favourites': [[favourite], []],
  }
  assert checked_files.is_experts(EXPERTS | {'groups': ['en'], 'layers': {'encoder_1': layer}})


@pytest.mark.parametrize(
  'change',
  [
    {'layers': {'encoder_1': 5}}, {'layers': {'encoder_1': LAYER | {'favourites': [[5], []]}}}, {'step': 'x'},
    {'layers': {'encoder_1': LAYER | {'favourites': None}}}, {'groups': None}, {'groups': ['en']}, {'layers': []},
    {'layers': {'encoder_1': LAYER | {'expert_tokens': [1]}}}, {'batches': -1}, {'split': None},
    {'layers': {'encoder_1': LAYER | {'token_bits': float('nan')}}},
  ],
)  # fmt: skip
def test_experts_of_other_shapes(change):
  assert not checked_files.is_experts(EXPERTS | change)


@pytest.mark.parametrize(
  ('entry', 'value'),
  [
    ('run', [1]), ('run', {'random_seed': 'x'}), ('run', {'data': 5}), ('run', {'distillation': 5}), ('model', 'x'),
    ('model', {'moe': 7}), ('parameters', 'many'), ('vocabulary', 3), ('teacher', {'step': 'last'}),
    ('run', {'data': {'mixture_or_task_name': 5}}), ('run', {'train_steps': -1}),
  ],
)  # fmt: skip
def test_settings_of_wrong_types(entry, value):
  assert checked_files.wrong_settings({entry: value}) == [entry]


def test_one_damaged_run_does_not_end_a_report(write_run, tmp_path, capsys):
  """Every file of run b is valid JSON of another shape; run a is reported, b as far as it goes."""
  write_run('runs/a', experts=2)
  folder = write_run('runs/b', seed=1, experts=2)
  (folder / 'eval/some_task/experts_40.json').write_text(json.dumps(EXPERTS | {'layers': {'encoder_1': 5}}))
  (folder / 'eval/some_task/experts_20.json').write_text('[' * 100_000)
  (folder / 'checkpoints/40/config.json').write_text('{"run": {"data": [], "model": 3}, "parameters": "x"}')
  with (folder / 'train/expert_tokens.jsonl').open('a') as file:
    for tokens in ([1, 'x'], [-1, 2], 'x', [[1], [2, 3]], [], None, 7):
      file.write(json.dumps({'step': 50, 'encoder_1': tokens}) + '\n')
  with (folder / 'train/metrics.jsonl').open('a') as file:
    file.write('{"step": 50, "cross_ent_loss": "x"}\n{"step": 51, "cross_ent_loss": [1]}\n{"step": -4}\n')
  os.mkfifo(write_run('runs/c') / 'train/expert_tokens.jsonl')
  assert main([str(tmp_path / 'runs'), f'--out={tmp_path}/report.html']) == 0
  assert [line.removeprefix('note: ') for line in capsys.readouterr().err.splitlines()] == [
    'b: config.json of the newest checkpoint is damaged in run, parameters, and left out.',
    'b: train/metrics.jsonl has 3 lines whose values are no numbers; they are left out.',
    'b: train/expert_tokens.jsonl has 7 lines whose values are no numbers; they are left out.',
    'b: experts_40.json is damaged; delete it and use --experts.',
    'b: experts_20.json is damaged; delete it and use --experts.',
    'b: no checkpoint with a config.json, so its settings are not known and it stands alone.',
    f'c is left out: it cannot be read ({tmp_path}/runs/c/train/expert_tokens.jsonl is a pipe; it must be a regular '
    'file. Copy the folder again.).',
  ]


def test_a_run_that_nothing_foresaw_is_named(write_run, tmp_path, capsys, monkeypatch):
  from switch_jax.report import routing

  write_run('runs/a')
  write_run('runs/b', experts=2)
  monkeypatch.setattr(routing, 'load_maps', lambda lines: lines[5] if lines else {'steps': [], 'layers': {}})
  assert main([str(tmp_path / 'runs'), f'--out={tmp_path}/report.html']) == 0
  assert 'note: b is left out: its files hold what no run writes (list index out of range).' in capsys.readouterr().err
