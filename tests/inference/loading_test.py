"""Models read from a MODEL_DIR, onto any mesh, and what is said when there is none."""

import json
import shutil

import jax
import numpy as np
import pytest
import tensorstore

from switch_jax.checkpoints import CheckpointError, CheckpointStore
from switch_jax.config import CheckpointConfig, ConfigError, MeshConfig
from switch_jax.inference import load_model
from switch_jax.inference.loading import check_batch_size, latest_step, make_inference_layout, open_store
from tests.inference.written_checkpoints import MODEL, random_parameters
from tests.interop.fuzz import seal


def test_the_parameters_are_those_that_were_saved_and_lie_on_the_mesh(checkpoints):
  store = open_store(checkpoints)
  assert latest_step(store) == 20
  model = load_model(store, 10, MeshConfig(data=2, expert=2, model=2))
  jax.tree.map(np.testing.assert_array_equal, model.params, random_parameters(10))
  assert model.step == 10
  assert model.record['run']['train_steps'] == 20
  assert (model.config.emb_dim, model.config.moe.sequences_per_group) == (MODEL.emb_dim, 1)
  kernel = model.params['encoder']['layers_0']['mlp']['expert']['wi']['kernel']
  assert kernel.addressable_shards[0].data.shape[0] == 2  # of four experts over two shards
  assert model.layout.num_token_shards == 4


def test_a_checkpoint_that_does_not_say_which_model_it_is(tmp_path):
  store = CheckpointStore(tmp_path, CheckpointConfig())
  store.save(10, {'params': random_parameters(10)}, {'vocabulary': None})
  store.close()
  store = open_store(tmp_path)
  with pytest.raises(ConfigError, match=r'config.json of .*10 does not say which model it is'):
    load_model(store, 10, MeshConfig())


def test_a_folder_that_is_not_there_and_one_without_checkpoints(tmp_path):
  with pytest.raises(ConfigError, match=r"MODEL_DIR is '.*/none', and there is no such folder; name that of a run"):
    open_store(tmp_path / 'none')
  with pytest.raises(ConfigError, match='holds no complete checkpoint; train first'):
    latest_step(open_store(tmp_path))


def test_a_damaged_newest_step_is_passed_over_and_one_that_was_asked_for_is_an_error(checkpoints, tmp_path, caplog):
  shutil.copytree(checkpoints, tmp_path / 'run')
  config = tmp_path / 'run' / 'checkpoints' / '20' / 'config.json'
  config.write_text(config.read_text().replace('"train_steps": 20', '"train_steps": 21'))
  assert latest_step(open_store(tmp_path / 'run')) == 10
  assert 'step 20 is damaged (config.json has other bytes than were written' in caplog.text
  assert 'going on from step 10.' in caplog.text
  with pytest.raises(CheckpointError, match=r'config\.json is damaged.* Other steps of that run: 10\.'):
    load_model(open_store(tmp_path / 'run'), 20, MeshConfig())


def test_descriptions_of_arrays_are_checked_before_memory_is_asked_for(checkpoints, tmp_path):
  shutil.copytree(checkpoints, tmp_path / 'run')
  step = tmp_path / 'run' / 'checkpoints' / '20'
  base = {'driver': 'file', 'path': f'{step}/state/'}
  arrays = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
  key = next(key for key in arrays.list().result() if key.endswith(b'/.zarray'))
  description = json.loads(arrays.read(key).result().value)
  chunks = [2**40 for _ in description['chunks']]
  arrays.write(key, json.dumps({**description, 'chunks': chunks}).encode()).result()
  seal(tmp_path / 'run')
  with pytest.raises(ConfigError, match=r'chunks is .* no larger than the array'):
    load_model(open_store(tmp_path / 'run'), 20, MeshConfig())


def test_batches_divide_over_the_mesh():
  layout = make_inference_layout(MODEL, MeshConfig(data=4, expert=2))
  check_batch_size(16, layout, 'EvaluationConfig')
  with pytest.raises(ConfigError, match=r'DataConfig.batch_size is 12, which the 8 .*use a multiple of 8'):
    check_batch_size(12, layout, 'DataConfig')
