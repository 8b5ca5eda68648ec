"""Weights & Biases and MLflow, with packages of their names that write down what they are told."""

import dataclasses
import json
import sys

import pytest

from switch_jax.config import ConfigError
from switch_jax.monitoring.trackers import Trackers
from tests.config.run_test import RUN

WANDB = """
import types
said = []
failing = set()

def tell(name, /, *args, **kwargs):
  said.append((name, args, kwargs))
  if name in failing:
    raise RuntimeError(f'{name}: the network is gone\\nand more')

def init(**kwargs):
  tell('init', **kwargs)
  log = lambda metrics, step: tell('log', metrics, step)
  return types.SimpleNamespace(id=kwargs['id'] or 'new', log=log, finish=lambda: tell('finish'))
"""
MLFLOW = """
import types
said = []

def tell(name):
  return lambda *args, **kwargs: said.append((name, args, kwargs))

set_experiment, log_params, log_metrics, end_run = map(tell, ('experiment', 'params', 'metrics', 'end'))

def start_run(run_id, run_name):
  said.append(('start', (run_id, run_name), {}))
  return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or 'new'))
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
  """Returns the folder on the Python path that packages of trackers are written to."""
  folder = tmp_path / 'packages'
  folder.mkdir()
  monkeypatch.syspath_prepend(folder)
  for name in ('WANDB_MODE', 'WANDB_API_KEY', 'WANDB_IDENTITY_TOKEN_FILE', 'WANDB_BASE_URL'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('NETRC', str(folder / 'netrc'))
  for name in ('wandb', 'mlflow'):
    monkeypatch.delitem(sys.modules, name, raising=False)
  yield folder
  for name in ('wandb', 'mlflow'):
    sys.modules.pop(name, None)


@pytest.fixture
def run(tmp_path):
  return dataclasses.replace(RUN, model_dir=str(tmp_path / 'my_run'), trackers=('wandb', 'mlflow'))


def log_in(packages):
  (packages / 'netrc').write_text('machine api.wandb.ai login user password key\n')


def test_both(packages, run):
  (packages / 'wandb.py').write_text(WANDB)
  (packages / 'mlflow.py').write_text(MLFLOW)
  log_in(packages)
  notes = []
  trackers = Trackers(run, notes.append)
  trackers.writer('train')(5, {'loss': 1.5})
  trackers.writer('held_out')(5, {'loss': 2.5})
  trackers.close()
  assert not notes
  import mlflow
  import wandb

  (_, _, begun), *rest = wandb.said
  assert (begun['project'], begun['name'], begun['id'], begun['dir']) == ('switch_jax', 'my_run', None, run.model_dir)
  assert begun['config'] == run.to_json()
  logged = [({'train/loss': 1.5}, 5), ({'held_out/loss': 2.5}, 5)]
  assert rest == [*(('log', args, {}) for args in logged), ('finish', (), {})]
  experiment, start, (_, (params,), _), *metrics, end = mlflow.said
  assert (experiment[1], start[1], end[0]) == (('switch_jax',), (None, 'my_run'), 'end')
  assert params['model.emb_dim'] == '32'
  assert metrics == [('metrics', args[:1], {'step': 5, 'synchronous': False}) for args in logged]

  Trackers(run, notes.append).close()  # the run goes on
  assert (wandb.said[-2][2]['id'], wandb.said[-2][2]['resume']) == ('new', 'allow')
  assert [name for name, *_ in mlflow.said[-3:]] == ['experiment', 'start', 'end']
  assert mlflow.said[-2][1] == ('new', 'my_run')


def test_not_installed(packages, run):
  (packages / 'wandb').mkdir()  # as Weights & Biases makes one in the working directory
  notes = []
  trackers = Trackers(run, notes.append)
  trackers.writer('train')(1, {'loss': 1.0})
  trackers.close()
  assert notes == [
    'no Weights & Biases: it is not installed (pip install wandb); training goes on without it',
    'no MLflow: it is not installed (pip install mlflow); training goes on without it',
  ]


def test_not_logged_in(packages, run, monkeypatch):
  (packages / 'wandb.py').write_text(WANDB)
  run, notes = dataclasses.replace(run, trackers=('wandb',)), []
  Trackers(run, notes.append)
  [note] = notes
  assert note.startswith('no Weights & Biases: not logged in (wandb login, or WANDB_API_KEY;')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  Trackers(run, notes.append)
  assert len(notes) == 1


def test_one_that_fails_is_left_out_and_said_once(packages, run):
  (packages / 'wandb.py').write_text(WANDB)
  log_in(packages)
  run, notes = dataclasses.replace(run, trackers=('wandb',)), []
  trackers = Trackers(run, notes.append)
  import wandb

  wandb.failing |= {'log'}
  for step in (1, 2):
    trackers.writer('train')(step, {'loss': 1.0})
  expected = 'Weights & Biases failed at step 1: RuntimeError: log: the network is gone; training goes on without it'
  assert notes == [expected]
  wandb.failing = {'finish'}
  Trackers(run, notes.append).close()
  assert notes[1:] == ['Weights & Biases may lack the last steps: RuntimeError: finish: the network is gone']
  wandb.failing = {'init'}
  assert json.loads((packages.parent / 'my_run' / 'trackers.json').read_text()) == {'wandb': 'new'}
  Trackers(run, notes.append)
  assert notes[-1].startswith('no Weights & Biases: RuntimeError: init: the network is gone;')


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'trackers': ('wandb', 'wandb')}, 'name each once'),
    ({'trackers': ('wandbb',)}, "trackers is .*'wandb', 'mlflow'"),
    ({'tracker_project': ''}, 'it must name a project'),
  ],
)
def test_trackers_that_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(RUN, **fields)
