"""Runs that begin with the parameters of another run: read, converted, and refused with what differs."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from switch_jax import config, data, interop
from switch_jax.checkpoints import CheckpointError, CheckpointStore
from switch_jax.config import CheckpointConfig, ConfigError
from switch_jax.interop import huggingface_tokenizer
from switch_jax.model import abstract_parameters
from switch_jax.parallel import Layout, make_mesh

MODEL = config.ModelConfig(
  vocab_size=32, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=4, num_decoder_layers=2,
  moe=config.MoeConfig(num_experts=4),
)  # fmt: skip
SCANNED = dataclasses.replace(MODEL, scan_layers=True)


@pytest.fixture(scope='module')
def layout():
  return Layout(make_mesh(config.MeshConfig(data=1, expert=4, model=2), 4))


@pytest.fixture(scope='module')
def params(layout):
  """Parameters of the unscanned model in which every number is another one."""
  random = np.random.default_rng(0)
  return jax.tree.map(lambda x: random.normal(size=x.shape).astype(x.dtype), abstract_parameters(MODEL, layout))


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory, params):
  """A MODEL_DIR whose step 3 holds zeros and whose step 7, scanned, holds `params`."""
  folder = tmp_path_factory.mktemp('pretrained')
  store = CheckpointStore(folder, CheckpointConfig())
  zeros = jax.tree.map(np.zeros_like, params)
  store.save(3, {'step': np.int32(3), 'params': zeros}, {'model': MODEL.to_json()})
  stacked = interop.stack_layers(params, SCANNED)
  store.save(7, {'step': np.int32(7), 'params': stacked}, {'model': SCANNED.to_json()})
  store.close()
  return folder


def test_the_newest_step_of_a_folder_or_the_one_that_is_named(model_dir, params, layout):
  abstract = abstract_parameters(MODEL, layout)
  newest = interop.initial_parameters(str(model_dir), MODEL, abstract)
  jax.tree.map(np.testing.assert_array_equal, newest, params)
  assert jax.tree.map(lambda x: x.sharding, newest) == jax.tree.map(lambda x: x.sharding, abstract)
  named = interop.initial_parameters(f'{model_dir}/checkpoints/3', MODEL, abstract)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(named))


@pytest.mark.parametrize('step', [3, 7])
def test_separate_and_scanned_layers_become_each_other(model_dir, params, layout, step):
  abstract = abstract_parameters(SCANNED, layout)
  read = interop.initial_parameters(f'{model_dir}/checkpoints/{step}', SCANNED, abstract)
  stacked = interop.stack_layers(params, SCANNED)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b * (step == 7)), read, stacked)


@pytest.mark.parametrize('stored_scanned', [False, True])
def test_experts_in_attention(tmp_path, layout, stored_scanned):
  """Stored one way, read both ways, and described without reading."""
  moe = dataclasses.replace(MODEL.moe, encoder_attention_layers=2, attention_expert='mlp')
  models = {scan: dataclasses.replace(MODEL, moe=moe, scan_layers=scan) for scan in (False, True)}
  random = np.random.default_rng(0)
  separate = jax.tree.map(
    lambda x: random.normal(size=x.shape).astype(x.dtype), abstract_parameters(models[False], layout)
  )
  expected = {False: separate, True: interop.stack_layers(separate, models[True])}
  store = CheckpointStore(tmp_path, CheckpointConfig())
  store.save(1, {'params': expected[stored_scanned]}, {'model': models[stored_scanned].to_json()})
  store.close()
  assert interop.describe_checkpoint(str(tmp_path), 'x').model == models[stored_scanned]
  for scan, model in models.items():
    read = interop.initial_parameters(str(tmp_path), model, abstract_parameters(model, layout))
    jax.tree.map(np.testing.assert_array_equal, read, expected[scan])


@pytest.mark.parametrize('step', [3, 7])
def test_another_model_is_refused_by_name(model_dir, layout, step):
  wider = dataclasses.replace(MODEL, mlp_dim=24)
  with pytest.raises(ConfigError) as caught:
    interop.initial_parameters(f'{model_dir}/checkpoints/{step}', wider, abstract_parameters(wider, layout))
  assert 'params/decoder/' in str(caught.value)
  assert '24) in this configuration' in str(caught.value)


def test_what_is_no_checkpoint_is_named(model_dir, tmp_path, layout):
  abstract = abstract_parameters(MODEL, layout)
  for path, message in (
    (tmp_path / 'nowhere', 'there is no such folder'),
    (tmp_path, 'it is empty'),
    (model_dir / 'checkpoints' / '5', 'there is no such folder'),
  ):
    with pytest.raises(ConfigError, match=message):
      interop.initial_parameters(str(path), MODEL, abstract)
  (tmp_path / 'checkpoints' / '4').mkdir(parents=True)
  with pytest.raises(CheckpointError, match='no complete checkpoint; complete steps beside it: none'):
    interop.initial_parameters(str(tmp_path / 'checkpoints' / '4'), MODEL, abstract)


@pytest.mark.parametrize('kind', ['bytes', 'byt5', 'byt5_huggingface'])
def test_the_vocabulary_of_a_folder_of_hugging_face(tmp_path, kind):
  vocabulary = data.describe_vocabulary(data.make_vocabulary(kind))
  for name, content in huggingface_tokenizer.export(vocabulary, None, 64, add_eos=True).files.items():
    (tmp_path / name).write_bytes(content)
  (tmp_path / 'config.json').write_text('{"model_type": "switch_transformers"}')
  for path in (str(tmp_path), f'huggingface:{tmp_path}'):
    assert interop.inherited_vocabulary(path) == kind
    # Of ByT5's two it cannot be said for certain.
    assert interop.recorded_vocabulary(path) == (None if kind == 'byt5' else vocabulary)


def test_others_checkpoints_without_a_vocabulary():
  fixtures = pathlib.Path(__file__).parent.parent / 'fixtures'
  for name in ('hf_switch_tiny', 't5x_switch_base_tiny'):
    assert interop.inherited_vocabulary(str(fixtures / name)) is None
  with pytest.raises(ConfigError, match="initial_checkpoint_path is 'nowhere', and there is no such folder"):
    interop.inherited_vocabulary('nowhere')
  with pytest.raises(ConfigError, match=r'A model of the hub is named huggingface:google/switch-base-8\.'):
    interop.inherited_vocabulary('google/switch-base-8')
