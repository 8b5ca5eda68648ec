"""Steps are whole or not there, restore on any mesh, and every way to damage one has its own words."""

import dataclasses
import json
import logging
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from switch_jax.checkpoints import CheckpointError, CheckpointStore
from switch_jax.config import CheckpointConfig, ConfigError, MoeConfig

CONFIG = CheckpointConfig(keep=2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
  step: Any
  params: Any
  opt_state: Any


def make_mesh(data, expert):
  devices = jax.devices()[: data * expert]
  return jax.make_mesh((data, expert, 1), ('data', 'expert', 'model'), axis_types=(AxisType.Auto,) * 3, devices=devices)


def shardings(tree, mesh):
  def one(leaf):
    spec = PartitionSpec('expert') if leaf.ndim == 3 else PartitionSpec()
    return NamedSharding(mesh, spec)

  return jax.tree.map(one, tree)


def make_state(mesh, seed=0, width=32):
  """A state with experts split over the mesh, and an optimizer's state with empty nodes and scalars in it."""
  keys = jax.random.split(jax.random.key(seed), 2)
  params = {
    'encoder': {'layers_0': {'mlp': {'expert': {'wi': {'kernel': jax.random.normal(keys[0], (8, 16, width))}}}}},
    'token_embedder': {'embedding': jax.random.normal(keys[1], (64, 16))},
  }
  optimizer = optax.chain(optax.clip(1.0), optax.scale_by_adam(), optax.scale(-1.0))
  state = State(step=jnp.int32(seed), params=params, opt_state=optimizer.init(params))
  return jax.device_put(state, shardings(state, mesh))


def abstract(state, mesh):
  shapes = jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), state, shardings(state, mesh)
  )
  return shapes


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def store(tmp_path):
  store = CheckpointStore(tmp_path / 'run', CONFIG)
  yield store
  store.close()


def save(store, step, seed=0, **kwargs):
  state = make_state(make_mesh(1, 1), seed)
  store.save(step, state, {'identity': {}}, **kwargs)
  store.wait()
  return state


def array_files(store, step):
  """The files of a step that hold arrays, the largest first."""
  files = [p for p in pathlib.Path(store.path(step) / 'state').glob('**/d/*') if p.is_file()]
  return sorted(files, key=lambda p: -p.stat().st_size)


def test_round_trip_on_another_mesh(store):
  state = make_state(make_mesh(1, 8), seed=3)
  store.save(7, state, {'identity': {}})
  store.wait()
  for mesh in (make_mesh(2, 4), make_mesh(4, 2), make_mesh(1, 1)):
    restored = store.restore(store.latest_step(), abstract(state, mesh))
    assert_equal(restored, state)
    kernel = restored.params['encoder']['layers_0']['mlp']['expert']['wi']['kernel']
    assert kernel.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec('expert')), 3)
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_saves_what_was_there_although_the_state_is_donated_at_once(store):
  state = make_state(make_mesh(1, 1), seed=1)
  expected = jax.tree.map(np.array, state)
  update = jax.jit(lambda tree: jax.tree.map(lambda a: a * 0 - 1, tree), donate_argnums=0)
  shape = abstract(state, make_mesh(1, 1))
  store.save(1, state, {})
  for _ in range(5):
    state = update(state)
  store.wait()
  assert_equal(store.restore(1, shape), expected)


def test_files_of_a_step(store):
  config = {'identity': {'random_seed': 1}, 'model': {'emb_dim': 16}, 'vocabulary': 'abc'}
  written = []

  def write_position(directory):
    written.append(directory)
    (directory / 'stream_0').write_bytes(b'position')

  store.save(5, make_state(make_mesh(1, 1)), config, write_position)
  assert len(written) == 1, 'the position is taken before save returns'
  store.wait()
  assert json.loads((store.model_dir / 'checkpoints' / '5' / 'config.json').read_text()) == config
  assert store.read_config(5) == config
  found = []
  store.restore_position(5, lambda directory: found.append((directory / 'stream_0').read_bytes()))
  assert found == [b'position']


def test_keeps_the_newest_and_the_same_step_twice_is_fine(store):
  for step in (1, 2, 3, 4):
    save(store, step, seed=step)
  assert store.steps() == [3, 4]
  assert sorted(os.listdir(store.directory)) == ['3', '4']
  first = make_state(make_mesh(1, 1), seed=4)
  save(store, 4, seed=9)
  assert_equal(store.restore(4, abstract(first, make_mesh(1, 1))), first)


def test_keeps_all(tmp_path):
  store = CheckpointStore(tmp_path, CheckpointConfig(keep=None))
  for step in (10, 2, 3, 100):
    save(store, step)
  assert store.steps() == [2, 3, 10, 100]
  store.close()


def test_incomplete_folders_are_ignored_and_said_once(store, caplog):
  save(store, 5)
  for name in ('15', '20', '12.orbax-checkpoint-tmp', 'notes', '007'):
    (store.directory / name).mkdir()
  (store.directory / '20' / 'state').mkdir()
  (store.directory / '20' / 'config.json').write_text('{}')
  with caplog.at_level(logging.WARNING):
    assert store.latest_step() == 5
    assert store.latest_step() == 5
  (record,) = [r for r in caplog.records if r.name.startswith('switch_jax.checkpoints')]
  assert '/15' in record.message
  assert '/20' in record.message
  assert 'step 5' in record.message


def test_a_run_is_saved_past_an_incomplete_folder(store, caplog):
  save(store, 5)
  (store.directory / '10').mkdir()
  (store.directory / '10' / 'mine').write_text('precious')
  state = save(store, 10, seed=2)
  assert store.latest_step() == 10
  assert_equal(store.restore(10, abstract(state, make_mesh(1, 1))), state)
  assert (store.directory / '10.incomplete' / 'mine').read_text() == 'precious'
  assert '10.incomplete' in caplog.text


def test_leftovers_of_a_killed_save_go_with_the_next_one(store):
  leftover = store.directory / '13.orbax-checkpoint-tmp'
  (leftover / 'state').mkdir(parents=True)
  assert store.latest_step() is None
  save(store, 14)
  assert sorted(os.listdir(store.directory)) == ['14']


def test_a_failed_save_leaves_no_step_and_the_next_one_works(store):
  save(store, 1)

  def write_position(directory):
    (directory / 'half').write_text('...')
    raise OSError('No space left on device')

  with pytest.raises(CheckpointError, match=r'(?s)checkpoints/2 could not be written: No space left.*untouched'):
    save(store, 2, write_position=write_position)
  assert store.latest_step() == 1
  state = save(store, 2, seed=2)
  assert_equal(store.restore(2, abstract(state, make_mesh(1, 1))), state)


@pytest.mark.parametrize(
  'harm', [lambda p: os.truncate(p, p.stat().st_size // 2), os.remove], ids=['truncated', 'missing']
)
def test_damaged_arrays(store, harm, capfd):
  save(store, 1)
  state = save(store, 2)
  harm(array_files(store, 2)[0])
  with pytest.raises(CheckpointError, match=r'step 2 is damaged: .* Other steps of that run: 1\.'):
    CheckpointStore(store.model_dir).restore_params(2)
  store = CheckpointStore(store.model_dir, CONFIG)
  with pytest.raises(
    CheckpointError,
    match=r'step 2 is damaged: state/\S+ (is missing|has \d+ bytes).*Delete the folder .*checkpoints/2; .*from step 1',
  ):
    store.restore(2, abstract(state, make_mesh(1, 1)))
  assert_equal(store.restore(1, abstract(state, make_mesh(1, 1))), state)
  assert 'Traceback' not in capfd.readouterr().err


def test_damaged_metadata_and_config(store):
  state = save(store, 1)
  metadata = store.path(1) / 'state' / '_METADATA'
  metadata.write_text(metadata.read_text().replace('tree_metadata', 'tree-metadata'))
  with pytest.raises(CheckpointError, match=r'step 1 is damaged.*only one'):
    store.restore(1, abstract(state, make_mesh(1, 1)))
  (store.path(1) / 'config.json').write_text('{"ident')
  with pytest.raises(CheckpointError, match=r'step 1 is damaged: config\.json has 7 bytes, not \d+'):
    store.check_identity({})
  with pytest.raises(CheckpointError, match=r'config\.json is damaged: config\.json has 7 bytes'):
    store.read_config(1)


def test_damaged_position(store):
  save(store, 1, write_position=lambda directory: (directory / 'a').write_text('1'))

  def read(directory):
    raise IndexError('pop from an empty list')

  with pytest.raises(
    CheckpointError, match=r'position in the data .*damaged: pop from an empty list.*Delete the folder'
  ):
    store.restore_position(1, read)


def test_another_shape_is_named(store):
  state = save(store, 1)
  other = make_state(make_mesh(1, 1), width=64)
  other.params['extra'] = jnp.zeros(3)
  del other.params['token_embedder']
  with pytest.raises(ConfigError) as error:
    store.restore(1, abstract(other, make_mesh(1, 1)))
  lines = str(error.value).splitlines()
  assert (
    '  params/encoder/layers_0/mlp/expert/wi/kernel: (8, 16, 32) in the checkpoint, (8, 16, 64) in this' in lines[1]
  )
  assert '  params/extra: not in the checkpoint, (3,) in this' in lines[2]
  assert_equal(store.restore(1, abstract(state, make_mesh(1, 1))), state)


def test_parameters_alone(store):
  state = make_state(make_mesh(1, 8))
  store.save(1, state, {})
  store.wait()
  mesh = make_mesh(2, 4)
  params = store.restore_params(1, abstract(state.params, mesh))
  assert_equal(params, state.params)
  assert params['token_embedder']['embedding'].sharding.mesh == mesh
  on_host = store.restore_params(1)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(on_host))
  assert_equal(on_host, state.params)
  with pytest.raises(ConfigError, match='params/new: not in the checkpoint'):
    store.restore_params(1, {'new': jax.ShapeDtypeStruct((3,), jnp.float32)})


def test_identity(store):
  def identity(**changes):
    return {'data.batch_size': 16, 'model.moe': MoeConfig(num_experts=4).to_json(), 'model.mlp': ('relu',), **changes}

  store.check_identity(identity())  # nothing there yet
  store.save(3, make_state(make_mesh(1, 1)), {'identity': identity(), 'data': {'digest': 'a'}})
  store.wait()
  before = {p: p.stat().st_mtime_ns for p in pathlib.Path(store.model_dir).rglob('*')}
  store.check_identity(identity())
  store.check_identity({'digest': 'a'}, section='data')
  with pytest.raises(ConfigError) as error:
    store.check_identity(identity(**{'data.batch_size': 32, 'model.new': True}))
  message = str(error.value)
  assert 'data.batch_size  16 in the checkpoint, 32 now' in message
  assert 'model.new        not set in the checkpoint, True now' in message
  assert 'model.mlp' not in message
  assert 'step 3' in message
  assert 'MODEL_DIR' in message
  with pytest.raises(ConfigError, match="digest  'a' in the checkpoint, 'b' now"):
    store.check_identity({'digest': 'b'}, section='data')
  assert before == {p: p.stat().st_mtime_ns for p in pathlib.Path(store.model_dir).rglob('*')}


def test_identity_of_a_run_without_a_checkpoint(store):
  begun = pathlib.Path(store.model_dir) / 'run.json'
  begun.write_text('{"identity": {"seed": 1}}')
  store.check_identity({'seed': 1})
  store.check_identity({'digest': 'b'}, section='data')  # nothing is said of that
  with pytest.raises(ConfigError) as error:
    store.check_identity({'seed': 2})
  message = str(error.value)
  assert 'seed  1 of the run that was begun there, 2 now' in message
  assert f'remove {begun} to start anew' in message
  store.save(3, make_state(make_mesh(1, 1)), {'identity': {'seed': 2}})
  store.wait()
  store.check_identity({'seed': 2})  # the checkpoint counts


def test_reading_only_makes_nothing(tmp_path):
  store = CheckpointStore(tmp_path / 'run')
  assert store.latest_step() is None
  with pytest.raises(CheckpointError, match=r'no complete checkpoint.*none'):
    store.read_config(3)
  with pytest.raises(ValueError, match='reading only'):
    store.save(1, {}, {})
  assert not (tmp_path / 'run').exists()


def test_relative_paths(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  store = CheckpointStore('run', CONFIG)
  save(store, 1)
  store.close()
  assert CheckpointStore(tmp_path / 'run').latest_step() == 1


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def test_a_damaged_step_gives_way_to_the_one_before(store, caplog):
  states = {step: save(store, step, seed=step) for step in (20, 30)}
  store.close()
  damaged = array_files(store, 30)[0]
  flip(damaged)
  again = CheckpointStore(store.model_dir, CONFIG)
  again.check_identity({})
  assert again.latest_whole_step() == 20
  (record,) = [r for r in caplog.records if r.name.startswith('switch_jax.checkpoints')]
  name = damaged.relative_to(pathlib.Path(store.path(30)))
  assert record.message == (
    f'The checkpoint of step 30 is damaged ({name} has other bytes than were written (its checksum differs)), '
    'going on from step 20.'
  )
  assert_equal(again.restore(20, abstract(states[20], make_mesh(1, 1))), states[20])
  with pytest.raises(CheckpointError, match=r'step 30 is damaged'):
    again.restore(30, abstract(states[30], make_mesh(1, 1)))
  assert again.steps() == [20]
  # It is no good step for the policy, and makes room for its successor.
  save(again, 25)
  assert again.steps() == [20, 25]
  new = save(again, 30, seed=5)
  again.close()
  assert (store.directory / '30.incomplete').is_dir()
  last = CheckpointStore(store.model_dir)
  assert last.steps() == [25, 30]
  assert last.latest_whole_step() == 30
  assert_equal(last.restore(30, abstract(new, make_mesh(1, 1))), new)


def test_all_steps_damaged_is_an_error(store):
  save(store, 1)
  flip(array_files(store, 1)[0])
  other = CheckpointStore(store.model_dir, CONFIG)
  for _ in range(2):
    with pytest.raises(CheckpointError, match=r'step 1 is damaged.* it is the only one'):
      other.latest_whole_step()


@pytest.mark.parametrize('name', ['config.json', 'data/stream_0', 'files.json', 'state/_METADATA'])
def test_one_bit_in_the_small_files(store, name):
  state = save(store, 1, write_position=lambda directory: (directory / 'stream_0').write_bytes(b'position'))
  flip(pathlib.Path(store.path(1)) / name)
  fresh = CheckpointStore(store.model_dir)
  with pytest.raises(CheckpointError, match=name.replace('.', r'\.')):
    fresh.restore(1, abstract(state, make_mesh(1, 1)))
  with pytest.raises(CheckpointError, match=name.replace('.', r'\.')):
    fresh.restore_position(1, lambda directory: pytest.fail('was read'))
  if name in ('config.json', 'files.json'):
    with pytest.raises(CheckpointError, match=rf'config\.json is damaged: {name}'):
      fresh.read_config(1)


def test_steps_without_checksums_are_read(store):
  state = save(store, 1)
  folder = pathlib.Path(store.path(1))
  sizes = {str(p.relative_to(folder)): p.stat().st_size for p in (folder / 'state').rglob('*') if p.is_file()}
  (folder / 'files.json').write_text(json.dumps(sizes))
  older = CheckpointStore(store.model_dir)
  assert older.latest_whole_step() == 1
  assert_equal(older.restore(1, abstract(state, make_mesh(1, 1))), state)
  assert older.read_config(1) == {'identity': {}}
