"""Files that grow on object stores: what is there after which call, and what a store that refuses comes to."""

import threading

import pytest
from etils import epath

from switch_jax.folders import remote
from switch_jax.folders.metric_lines import LineWriter, read_metrics
from switch_jax.folders.remote import Appender


class OpError(Exception):
  """What TensorFlow's errors are known by."""


class UnavailableError(OpError):
  """Says that it is worth another try."""


for kind in (OpError, UnavailableError):
  kind.__module__ = 'tensorflow.python.framework.errors_impl'


class Store:
  """Stands for `epath.Path.open` of an object store; raises the errors it is given, one at each flush."""

  def __init__(self, *errors):
    self.errors, self.data, self.flushes = list(errors), b'', 0

  def __call__(self, path, mode):
    assert mode == 'ab'
    return self

  def __enter__(self):
    return self

  def __exit__(self, *rest):
    pass

  def write(self, data):
    self.data += data

  def flush(self):
    self.flushes += 1
    if self.errors:
      raise self.errors.pop(0)


@pytest.fixture
def path(tmp_path):
  return epath.Path(tmp_path / 'metrics.jsonl')


def given(monkeypatch, *errors):
  store = Store(*errors)
  monkeypatch.setattr(remote, '_open', store)
  monkeypatch.setattr(remote, '_SECONDS_BETWEEN_TRIES', 0.0)
  return store


def is_running():
  return any(thread.name == 'switch_jax uploads' for thread in threading.enumerate())


def test_what_is_remote():
  assert remote.is_remote('gs://bucket/x')
  assert not remote.is_remote('/some/dir')


@pytest.mark.parametrize('error', [OSError('no'), UnavailableError('no')])
def test_what_stores_say(error):
  assert remote.is_storage_error(error)
  assert not remote.is_storage_error(ValueError('no'))


def test_lines_are_there_after_flush_and_after_close(path):
  appender = Appender()
  writer = LineWriter(path, appender)
  writer.append(1, {'loss': 1.0})
  writer.append(2, {'loss': 0.5})
  appender.flush()
  assert [line['step'] for line in read_metrics(path)] == [1, 2]
  writer.append(2, {'loss': 0.25})  # replaces it
  writer.append(3, {'loss': 0.125})
  appender.close()
  assert [(line['step'], line['loss']) for line in read_metrics(path)] == [(1, 1.0), (2, 0.25), (3, 0.125)]
  assert not is_running()
  writer.append(4, {'loss': 0.0})
  appender.close()
  assert read_metrics(path)[-1]['step'] == 4
  assert not is_running()


def test_lines_arrive_without_a_flush(path):
  appender = Appender(seconds=0.01)
  appender.append(path, b'{"step": 1}\n')
  for _ in range(1000):
    if read_metrics(path):
      break
    threading.Event().wait(0.01)
  assert read_metrics(path) == [{'step': 1}]
  appender.close()


def test_what_passes_is_tried_again_and_written_once(path, monkeypatch):
  store = given(monkeypatch, UnavailableError('503'), UnavailableError('503'))
  appender = Appender()
  appender.append(path, b'a')
  appender.flush()
  assert (store.data, store.flushes) == (b'a', 3)
  appender.close()


def test_a_store_that_refuses_is_one_error(path, monkeypatch):
  given(monkeypatch, OpError('403 forbidden'))
  appender = Appender()
  appender.append(path, b'a')
  with pytest.raises(OSError, match=r'metrics\.jsonl: 403 forbidden'):
    appender.flush()
  with pytest.raises(OSError, match='403 forbidden'):
    appender.append(path, b'b')
  appender.close()
  assert not is_running()


def test_a_store_that_takes_nothing_for_long_is_given_up_and_spoken_of_once(path, monkeypatch, caplog):
  given(monkeypatch, *(UnavailableError('503') for _ in range(100_000)))
  monkeypatch.setattr(remote, '_SECONDS_TO_WARNING', 0.0)
  monkeypatch.setattr(remote, '_SECONDS_TO_ERROR', 1.5)
  monkeypatch.setattr(remote, '_SECONDS_BETWEEN_TRIES', 0.01)
  appender = Appender(seconds=0.0)
  appender.append(path, b'a')
  with pytest.raises(OSError, match='503'):
    appender.flush()
  assert len(caplog.records) == 1
  assert 'cannot be written to at the moment' in caplog.text
  appender.close()


def test_what_a_killed_process_had_not_put_behind_the_rest_goes(tmp_path):
  folder = epath.Path(tmp_path)
  remote.remove_unfinished(folder)
  (folder / '.tmpcompose').mkdir()
  (folder / '.tmpcompose' / 'metrics.jsonl').write_text('{"st')
  (folder / 'metrics.jsonl').write_text('{}\n')
  remote.remove_unfinished(folder)
  assert [path.name for path in folder.iterdir()] == ['metrics.jsonl']
