"""What Orbax does with our handlers: its files stay as they were summed, and Orbax alone can read the arrays."""

import json

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from switch_jax.checkpoints import CheckpointStore, checksums
from switch_jax.checkpoints.orbax_handlers import FilesHandler
from switch_jax.config import CheckpointConfig


@pytest.fixture
def step(tmp_path):
  store = CheckpointStore(tmp_path, CheckpointConfig())
  store.save(1, {'params': {'w': jnp.arange(6.0)}}, {})
  store.close()
  return store.path(1)


def test_every_file_is_recorded(step):
  recorded = checksums.read_record(step / 'files.json')
  assert sorted([*recorded, 'files.json']) == checksums.list_files(step)
  checksums.check(step, recorded)


def test_metadata_of_the_step_is_not_touched_by_the_commit(step):
  assert json.loads((step / '_CHECKPOINT_METADATA').read_text())['commit_timestamp_nsecs'] is None


def test_orbax_reads_the_arrays_without_us(step):
  with ocp.StandardCheckpointer() as reader:
    np.testing.assert_array_equal(reader.restore(step / 'state')['params']['w'], np.arange(6.0))


def test_files_are_not_read_by_orbax(step):
  with pytest.raises(NotImplementedError, match='read_config'):
    FilesHandler().restore(step)
