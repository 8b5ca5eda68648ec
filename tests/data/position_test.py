"""A saved position is exactly that of the batches handed out, however far ahead the thread is."""

import dataclasses
import functools
import json
import time

import jax
import numpy as np
import pytest
from etils import epath

from switch_jax.config import ConfigError
from switch_jax.data import corpus, providers, streams, text_task
from switch_jax.data.pipeline import MIN_SNAPSHOT_PERIOD, TrainingSource, choose_snapshot_period
from switch_jax.data.quiet_tensorflow import seqio

PERIOD = 4


def take(source, count):
  """Returns the next batches as NumPy arrays."""
  return [jax.tree.map(np.asarray, next(source)) for _ in range(count)]


def wait_until_ahead(source):
  """Waits until the thread has made all it may make, so that it surely is past the position."""
  while len(source._prefetcher._ready) < source._prefetch:
    time.sleep(0.01)


@pytest.fixture(scope='module')
def open_source(config, rows_sharding):
  """Returns a function that opens the tiny task with snapshots every fourth batch; closes what was opened."""
  sources = []

  def open_one(seed=0, **changes):
    changed = dataclasses.replace(config, **changes)
    sources.append(TrainingSource(changed, seed, rows_sharding, snapshot_period=PERIOD))
    return sources[-1]

  yield open_one
  for source in sources:
    source.close()


@pytest.fixture(scope='module')
def sources(open_source):
  """Two sources of the same two streams; tests begin by restoring a position."""
  return tuple(open_source(num_data_shards=2, prefetch=3) for _ in range(2))


@pytest.fixture(scope='module')
def positions(sources, tmp_path_factory):
  """Positions of the first source by their number of batches, and ten batches from the beginning."""
  saved, batches = {}, []
  for count in (0, 2, 4, 7):
    batches += take(sources[0], count - len(batches))
    if count:
      wait_until_ahead(sources[0])
    saved[count] = epath.Path(tmp_path_factory.mktemp(f'position_{count}'))
    sources[0].save_position(saved[count])
  return saved, batches + take(sources[0], 3)


def assert_same(batches, others):
  """Checks that two lists of batches are equal in every feature."""
  jax.tree.map(np.testing.assert_array_equal, batches, others)


def test_restored_batches_are_those_that_followed(sources, positions):
  saved, batches = positions
  # In no order, and into a source that has been used: restoring leaves nothing of what was before.
  for count in (4, 7, 0, 2):
    sources[1].restore_position(saved[count])
    assert_same(take(sources[1], 3), batches[count : count + 3])


def test_a_resumed_run_saves_positions_too(sources, positions, tmp_path):
  saved, batches = positions
  sources[1].restore_position(saved[2])
  assert_same(take(sources[1], 1), batches[2:3])  # no snapshot of its own yet: the position is on the restored one
  sources[1].save_position(tmp_path)
  sources[0].restore_position(tmp_path)
  assert_same(take(sources[0], 3), batches[3:6])


def test_the_files_are_named_by_stream_and_small(sources, positions):
  folder = positions[0][7]
  names = {path.name for path in folder.iterdir()}
  assert names == {'position.json'} | {
    f'stream_0000{stream}.{part}' for stream in (0, 1) for part in ('index', 'data-00000-of-00001')
  }
  position = json.loads((folder / 'position.json').read_text())
  assert (position['batches'], position['batches_since_snapshot']) == (7, 3)
  assert position['fingerprint'] == sources[0].fingerprint
  assert sum(path.stat().length for path in folder.iterdir()) < 4e6


def test_old_snapshots_are_removed(open_source):
  source = open_source()
  take(source, 5 * PERIOD)
  wait_until_ahead(source)
  assert len(list(source._snapshots._directory.iterdir())) <= 2
  source.close()
  assert not source._snapshots._directory.exists()


def test_a_position_of_other_data_is_not_restored(sources, open_source, tmp_path):
  open_source(seed=1).save_position(tmp_path)
  with pytest.raises(ConfigError, match=r'seed was 1 and is 0: set it back; num_data_shards was 1 and is 2'):
    sources[0].restore_position(tmp_path)


@pytest.mark.parametrize('name', ['stream_00000.data-00000-of-00001', 'stream_00001.index', 'position.json'])
@pytest.mark.parametrize('kept', [None, 0.5])
def test_damage_is_told_from_a_wrong_setting(sources, positions, tmp_path, name, kept):
  for path in positions[0][2].iterdir():
    path.copy(tmp_path / path.name)
  contents = (tmp_path / name).read_bytes()
  (tmp_path / name).unlink()
  if kept:
    (tmp_path / name).write_bytes(contents[: int(kept * len(contents))])
  with pytest.raises(ValueError, match='data position') as caught:
    sources[1].restore_position(tmp_path)
  assert not isinstance(caught.value, ConfigError)
  # An older checkpoint can be tried next.
  sources[1].restore_position(positions[0][0])
  assert_same(take(sources[1], 1), positions[1][:1])


def test_a_position_of_rows_that_were_padded_one_by_one(open_source, tmp_path, monkeypatch):
  """Version 0.2.0 made the same rows with other operations, whose iterators cannot be restored: rows are made again."""
  with monkeypatch.context() as older:
    older.setattr(streams, 'are_token_pairs', lambda *_: False)
    older.setattr(providers, 'PADDED_PIPELINE_VERSION', 1)
    source = open_source(pack=False)
    take(source, 6)
    source.save_position(tmp_path)
    wanted = take(source, 4)
  source = open_source(pack=False)
  take(source, 1)  # from wherever it is
  source.restore_position(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, take(source, 1), wanted[:1])
  (tmp_path / 'again').mkdir()
  source.save_position(tmp_path / 'again')
  jax.tree.map(np.testing.assert_array_equal, take(source, 3), wanted[1:])
  source.restore_position(tmp_path / 'again')
  jax.tree.map(np.testing.assert_array_equal, take(source, 3), wanted[1:])
  versions = [json.loads((p / 'position.json').read_text())['fingerprint'] for p in (tmp_path, tmp_path / 'again')]
  assert [version.pop('pipeline_version') for version in versions] == [1, 2]
  assert versions[0] == versions[1]


@pytest.mark.parametrize('version', [1, 2])
def test_a_position_of_rows_that_were_cut_one_by_one(open_source, tmp_path, monkeypatch, request, version):
  """A continuation fits its row; until version 2 of its pipeline SeqIO cut every one all the same."""
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))

  def write(writer):
    for i in range(300):
      writer.add(f'paragraph {i} of the text', corpus.TRAIN)

  get_corpus = functools.partial(corpus.get_corpus, 'text', {}, write, held_out_fraction=0.0, num_files=1)
  text_task.add_continuation_task('continued_paragraphs', get_corpus)
  request.addfinalizer(lambda: seqio.TaskRegistry.remove('continued_paragraphs'))
  changes = dict(
    mixture_or_task_name='continued_paragraphs', task_module=None, text_files=None, pack=False,
    feature_lengths={'inputs': 8, 'targets': 24},
  )  # fmt: skip
  with monkeypatch.context() as older:
    older.setattr(streams, 'are_left_whole', lambda *_: False)
    if version == 1:
      older.setattr(streams, 'are_token_pairs', lambda *_: False)
    older.setattr(providers, 'FITTING_PIPELINE_VERSION', version)
    source = open_source(**changes)
    take(source, 6)
    source.save_position(tmp_path)
    wanted = take(source, 4)
  source = open_source(**changes)
  assert source.fingerprint['pipeline_version'] == 3
  source.restore_position(tmp_path)
  assert_same(take(source, 4), wanted)


def test_snapshots_are_rarer_where_the_buffer_is_large(config):
  def period(**changes):
    return choose_snapshot_period(dataclasses.replace(config, **changes))

  many = dict(shuffle_buffer_size=20_000, batch_size=100, feature_lengths={'inputs': 8, 'targets': 12})
  assert period(**many) == 1000  # 100,000 rows
  assert period(**many | {'batch_size': 200, 'num_data_shards': 2}) == 1000  # each stream has a buffer
  assert period(**many, shuffle=False) == MIN_SNAPSHOT_PERIOD
  assert period(**many | {'feature_lengths': {'inputs': 64, 'targets': 36}}) == 400  # 4,000,000 tokens are made again
  assert period(**many | {'feature_lengths': {'inputs': 512, 'targets': 114}}) == MIN_SNAPSHOT_PERIOD
  assert period(shuffle_buffer_size=1000, batch_size=128) == MIN_SNAPSHOT_PERIOD
