"""Folders of steps: made, cleared of leftovers, moved out of the way."""

import os

import pytest
from etils import epath

from switch_jax.checkpoints import step_folders
from switch_jax.config import ConfigError


def make(model_dir):
  step_folders.require_writable(epath.Path(model_dir), epath.Path(model_dir) / 'checkpoints')


def test_both_folders_are_made(tmp_path):
  make(tmp_path / 'a' / 'run')
  make(tmp_path / 'a' / 'run')
  assert (tmp_path / 'a' / 'run' / 'checkpoints').is_dir()


def test_places_that_cannot_be_used(tmp_path, monkeypatch):
  file = tmp_path / 'file'
  file.write_text('')
  with pytest.raises(ConfigError, match=r'file is a file; .*MODEL_DIR'):
    make(file)
  with pytest.raises(ConfigError, match=r'cannot be made .*MODEL_DIR'):
    make(file / 'run')
  monkeypatch.setattr(os, 'access', lambda *args: False)
  with pytest.raises(ConfigError, match='cannot be written to'):
    make(tmp_path / 'run')


def test_a_step_that_cannot_be_removed_is_said_and_no_step_any_more(tmp_path, monkeypatch, caplog):
  steps = [epath.Path(tmp_path) / name for name in '12']
  for step in steps:
    step.mkdir()
    (step / 'files.json').write_text('')
    (step / 'config.json').write_text('')
  step_folders.remove_steps(steps[:1])

  def refuse(path):
    raise PermissionError(13, 'Permission denied', os.fspath(path))

  monkeypatch.setattr(type(steps[1]), 'rmtree', refuse)
  step_folders.remove_steps(steps[1:])
  assert sorted(os.fspath(path.relative_to(tmp_path)) for path in tmp_path.rglob('*')) == ['2', '2/config.json']
  [record] = caplog.records
  assert '2 is not to be kept and could not be removed: ' in record.getMessage()
  caplog.clear()
  (steps[1] / 'config.json').unlink()
  step_folders.remove_steps(steps[1:])  # a store says that there is nothing when it is asked a second time
  assert not caplog.records


def test_leftovers_go_and_nothing_else_does(tmp_path):
  """A killed save, where folders are renamed and where not; a killed pruning; and what is not ours."""
  for place in (
    '13.orbax-checkpoint-tmp/state',
    '20/state',
    '30/state',
    '40',
    'notes.orbax-checkpoint-tmp',
    '50/state',
  ):
    (tmp_path / place).mkdir(parents=True)
  for place in ('20/config.json', '30/_CHECKPOINT_METADATA', '40/mine', '50/config.json', '50/files.json'):
    (tmp_path / place).write_text('{}')
  step_folders.remove_leftovers(epath.Path(tmp_path))
  assert sorted(os.listdir(tmp_path)) == ['40', '50', 'notes.orbax-checkpoint-tmp']


def test_what_stands_in_the_way_is_kept_beside(tmp_path, caplog):
  for content in ('first', 'second'):
    (tmp_path / '10').mkdir()
    (tmp_path / '10' / 'mine').write_text(content)
    step_folders.move_aside(epath.Path(tmp_path) / '10')
  step_folders.move_aside(epath.Path(tmp_path) / '10')  # nothing is there
  assert sorted(os.listdir(tmp_path)) == ['10.incomplete', '10.incomplete_1']
  assert (tmp_path / '10.incomplete_1' / 'mine').read_text() == 'second'
  assert '10.incomplete_1' in caplog.text
