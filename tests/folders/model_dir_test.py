"""What lies where in a MODEL_DIR, which paths name a step, and what older versions have written."""

import os

import pytest

from switch_jax.folders.model_dir import ModelDir, owner_beside, split_step


@pytest.fixture
def place(tmp_path):
  return ModelDir(tmp_path / 'run')


def write(folder, *lines):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'metrics.jsonl').write_text(''.join(f'{line}\n' for line in lines))


def test_names(place):
  below = lambda path: os.path.relpath(path, place.path)  # noqa: E731
  assert below(place.step(40)) == 'checkpoints/40'
  assert below(place.config(40)) == 'checkpoints/40/config.json'
  assert below(place.train) == 'train'
  assert below(place.held_out('t')) == 'eval/t'
  assert below(place.task_metrics('t')) == 'eval/t.metrics'
  assert below(place.experts('t', 7)) == 'eval/t/experts_7.json'
  assert below(place.predictions('t', 7, '_capacity_2.0')) == 'predictions/t/7_capacity_2.0.jsonl'
  own = (place.config_gin, place.summary, place.vocabulary, place.profile, place.finished)
  assert [below(p) for p in own] == ['config.gin', 'summary.png', 'vocabulary.model', 'profile', 'finished.json']
  assert [below(p) for p in (place.begun, place.owner)] == ['run.json', 'owner.json']
  assert below(owner_beside(place.path / 'out.jsonl')) == 'out.jsonl.owner.json'


def test_relative_paths_become_absolute_and_remote_ones_stay(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert ModelDir('run') == ModelDir(tmp_path / 'run')
  assert os.fspath(ModelDir('gs://bucket/run').step(5)) == 'gs://bucket/run/checkpoints/5'


def test_paths_that_name_a_step(tmp_path):
  run = ModelDir(tmp_path / 'run')
  assert split_step(tmp_path / 'run') == (run, None)
  assert split_step(f'{tmp_path}/run/checkpoints/500/') == (run, 500)
  assert split_step(tmp_path / 'run' / 'checkpoints')[1] is None
  assert split_step('gs://bucket/run/checkpoints/5') == (ModelDir('gs://bucket/run'), 5)
  assert split_step('gs://bucket/checkpoint_5') == (ModelDir('gs://bucket/checkpoint_5'), None)


def test_numbered_steps(place):
  assert place.numbered_steps() == []
  for name in ('9', '100', '007', '5.incomplete', '20.orbax-checkpoint-tmp-1', 'x'):
    place.checkpoints.joinpath(name).mkdir(parents=True)
  assert place.numbered_steps() == [9, 100]


def test_the_newest_config_that_can_be_read(place):
  assert place.read_newest_config() == ({}, [])
  for step, text in ((1, b'{"old": 1}'), (2, b'{"parameters": 3}'), (3, b'[]'), (4, b'\xff\xff'), (5, None)):
    place.step(step).mkdir(parents=True)
    if text is not None:
      place.config(step).write_bytes(text)
  record, problems = place.read_newest_config()
  assert record == {'parameters': 3}
  assert problems == [
    'checkpoint 5 has no config.json (half written).',
    'config.json of checkpoint 4 is damaged.',
    'config.json of checkpoint 3 is damaged.',
  ]


def test_held_out_loss_and_metrics_of_a_task_are_told_apart(place):
  """Older versions wrote both kinds of lines to one file, each where the other was not, or both."""
  assert place.tasks() == place.read_held_out('a') == place.read_task_metrics('a') == []
  write(
    place.held_out('a'),
    '{"step": 20, "accuracy": 50.0}',
    '{"step": 0, "cross_ent_loss": 3.0, "accuracy": 0.5}',
    '{"step": 10, "accuracy": 40.0, "f1": 1.0}',
  )
  write(place.task_metrics('a'), '{"step": 10, "accuracy": 41.0}', '{"step": 30, "accuracy": 60.0}')
  write(place.task_metrics('mixture'), '{"step": 30, "average": 60.0}')
  write(place.held_out('z'), '{"step": 0, "cross_ent_loss": 3.0}')
  assert place.read_held_out('a') == [{'step': 0, 'cross_ent_loss': 3.0, 'accuracy': 0.5}]
  assert place.read_task_metrics('a') == [
    {'step': 10, 'accuracy': 41.0, 'f1': 1.0},
    {'step': 20, 'accuracy': 50.0},
    {'step': 30, 'accuracy': 60.0},
  ]
  assert place.tasks() == ['a', 'z', 'mixture']


def test_measured_experts_newest_first(place):
  place.held_out('a').mkdir(parents=True)
  for name in ('experts_9.json', 'experts_100.json', 'experts_x.json', 'experts_007.json', 'experts_5.json.tmp'):
    (place.held_out('a') / name).write_text('{}')
  assert [p.name for p in place.measured_experts('a')] == ['experts_100.json', 'experts_9.json']
  assert place.measured_experts('b') == []


def test_what_was_begun(place):
  assert place.read_begun() is None
  place.path.mkdir()
  for damaged in ('', '{"ident', '[]'):
    place.begun.write_text(damaged)
    assert place.read_begun() is None
  place.begun.write_text('{"identity": {}}')
  assert place.read_begun() == {'identity': {}}
