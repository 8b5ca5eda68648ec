"""Opening a run: in its order, closed again where it fails half-way. Without data and devices of its own."""

import contextlib
import dataclasses
import sys
import types

import jax
import pytest

from switch_jax import config
from switch_jax.parallel import Layout
from switch_jax.training import opening
from switch_jax.training.state import init_state, plan_state

MODEL = config.ModelConfig(
  vocab_size=16, emb_dim=4, num_heads=2, head_dim=2, mlp_dim=4, num_encoder_layers=1, num_decoder_layers=1
)
VOCABULARY = types.SimpleNamespace(extra_ids=3, eos_id=1)


class Source:
  """Says what is done to it, and gives no batch."""

  vocabulary, vocabulary_size, fingerprint = VOCABULARY, 12, {'seed': 0}
  features = types.MappingProxyType({'inputs': {}, 'targets': {}})
  description, template, has_metrics = None, None, False

  def __init__(self, done, data):
    self._done, self.data = done, data

  def restore_position(self, folder):
    self._done.append('position')

  def start(self):
    self._done.append('start')

  def close(self):
    self._done.append('close source')

  def __iter__(self):
    return iter(['batch 1', 'batch 2'])


class Store:
  """No checkpoint; or, with a state, one of step 5 that another process has left."""

  def __init__(self, done, state=None):
    self._done, self._state, self.scores = done, state, {}

  def latest_step(self):
    return 5 if self._state else None

  latest_whole_step = latest_step

  def read_config(self, step):
    assert step == 5
    return {'target_tokens': 70}

  def restore_position(self, step, read):
    read(f'folder of {step}')

  def restore(self, step, abstract):
    self._done.append(f'restore {step}')
    return self._state


class Files:
  def __init__(self, done, place, active):
    self._done, self._name = done, place.parent.name if place.name == 'a_task' else place.name
    assert active

  def truncate_after(self, step):
    self._done.append(f'{self._name} after {step}')

  def last_expert_step(self):
    return None

  def flush(self):
    self._done.append(f'flush {self._name}')

  def close(self):
    self._done.append(f'close {self._name}')


@pytest.fixture
def done(monkeypatch):
  """Returns a list of what is opened, read and closed."""
  happened = []
  fakes = dict(
    open_training=lambda data, *_: happened.append('data') or Source(happened, data),
    describe_vocabulary=lambda vocabulary: {'name': 'bytes', 'size': 12, 'digest': 'a'},
    keep_vocabulary=lambda vocabulary, folder: happened.append('keep vocabulary'),
    open_evaluation=lambda *_: happened.append('held out') or types.SimpleNamespace(groups=(), on_host=[]),
  )
  for name, fake in fakes.items():
    monkeypatch.setattr(opening.data, name, fake)
  monkeypatch.setattr(opening, 'MetricFiles', lambda place, active, beside: Files(happened, place, active))
  return happened


def run_of(batch=8, **fields):
  data = config.DataConfig(mixture_or_task_name='a_task', feature_lengths={'inputs': 4, 'targets': 4}, batch_size=batch)
  return config.RunConfig(**dict(model_dir='/x', model=MODEL, data=data, train_steps=9, random_seed=0) | fields)


def opened(run, done, store=None):
  """Opens a run; returns it as it is inside, once it is closed."""
  with contextlib.ExitStack() as stack:
    found = opening.open_run(run, store or Store(done), False, stack)
    done.append('opened')
  return found


def test_a_new_run(done):
  run = run_of()
  found = opened(run, done)
  assert done == [
    'data', 'keep vocabulary', 'start', 'held out', 'train after -1', 'eval after -1', 'opened',
    'close eval', 'close train', 'close source',
  ]  # fmt: skip
  assert (found.first_step, found.reporter.target_tokens, int(found.state.step)) == (0, 0, 0)
  assert found.sentinels == (9, 10, 11)
  assert list(found.batches) == [('batch 1',), ('batch 2',)]
  assert found.record['identity'] == run.identity()
  assert found.record['vocabulary']['digest'] == 'a'
  assert found.record['parameters'] == sum(x.size for x in jax.tree.leaves(found.state.params))
  assert bool(found.are_finite(found.state.params))


def test_a_continued_run_begins_with_its_checkpoint(done):
  run, layout = run_of(), Layout.single_device()
  state = init_state(run, layout, plan_state(run, layout))
  found = opened(run, done, Store(done, state))
  assert done[:7] == ['data', 'position', 'keep vocabulary', 'start', 'held out', 'restore 5', 'train after 5']
  assert (found.state, found.first_step, found.reporter.target_tokens) == (state, 5, 70)


@pytest.mark.parametrize('failing', ['open_evaluation', 'make_train_step'])
def test_what_was_opened_is_closed_where_it_fails(done, monkeypatch, failing):
  def fail(*_):
    raise RuntimeError('no')

  place = opening if hasattr(opening, failing) else opening.data
  monkeypatch.setattr(place, failing, fail)
  with pytest.raises(RuntimeError, match='no'):
    opened(run_of(), done)
  closed = [what for what in done if what.startswith('close')]
  assert closed == (['close source'] if failing == 'open_evaluation' else ['close eval', 'close train', 'close source'])


def test_a_tracker_that_is_not_there_is_said_and_left_out(done, monkeypatch, capsys, tmp_path):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  opened(run_of(model_dir=str(tmp_path), trackers=('wandb',)), done)
  assert 'opened' in done
  assert 'no Weights & Biases: it is not installed (pip install wandb); training goes on' in capsys.readouterr().err


def test_what_does_not_divide_is_refused_before_data_is_opened(done):
  with pytest.raises(config.ConfigError, match='batch_size is 12'):
    opened(run_of(12), done)
  assert done == []


def test_a_vocabulary_that_is_too_large_is_refused_before_anything_is_written(done, monkeypatch):
  monkeypatch.setattr(Source, 'vocabulary_size', 17)
  with pytest.raises(config.ConfigError, match=r'vocab_size is 16 and the vocabulary of a_task has 17 ids'):
    opened(run_of(), done)
  assert done == ['data', 'close source']


def test_parameters_of_another_vocabulary_are_refused(done, monkeypatch):
  monkeypatch.setattr(opening, 'initial_parameters', lambda *_: 'parameters')
  monkeypatch.setattr(opening, 'recorded_vocabulary', lambda path: {'name': 'mine', 'size': 11, 'digest': 'b'})
  with pytest.raises(config.ConfigError, match=r'/c was trained with the vocabulary mine of 11 ids, and a_task has'):
    opened(run_of(initial_checkpoint_path='/c'), done)
  assert done == ['data', 'close source']


def test_tables_inherit_the_vocabulary_of_the_checkpoint(done, monkeypatch):
  tables = (config.TableConfig(files='a.csv'),)
  run = run_of()
  run = dataclasses.replace(run, data=dataclasses.replace(run.data, tables=tables))
  assert opened(run, done).source.data.vocabulary is None
  monkeypatch.setattr(opening, '_given_parameters', lambda *_: {})
  monkeypatch.setattr(opening, '_check_same_vocabulary', lambda *_: None)
  monkeypatch.setattr(opening, 'init_state', lambda *_: None)
  monkeypatch.setattr(opening, 'inherited_vocabulary', lambda path: {'/ours': '/ours/vocabulary.model'}.get(path))
  begun = dataclasses.replace(run, initial_checkpoint_path='/ours')
  assert opened(begun, done).source.data.vocabulary == '/ours/vocabulary.model'
  said = dataclasses.replace(begun, data=dataclasses.replace(begun.data, vocabulary='bytes'))
  assert opened(said, done).source.data.vocabulary == 'bytes'
  with pytest.raises(config.ConfigError, match=r'/theirs records no vocabulary .*; set --gin\.VOCABULARY'):
    opened(dataclasses.replace(run, initial_checkpoint_path='/theirs'), done)
  store = Store(done, state=types.SimpleNamespace(step=5))
  monkeypatch.setattr(Store, 'read_config', lambda self, step: {'target_tokens': 70, 'vocabulary': {'name': 'byt5'}})
  assert opened(run, done, store).source.data.vocabulary == 'byt5'
