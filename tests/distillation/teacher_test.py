"""A teacher: which one it is, what it is held as, what it says, and when it is refused."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax import config
from switch_jax.checkpoints import CheckpointStore
from switch_jax.distillation.teacher import Teacher
from switch_jax.model import Transformer
from switch_jax.parallel import Layout
from tests.distillation.saved_teachers import save

MODEL = config.ModelConfig(
  vocab_size=64, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1,
  remat_policy='full',
  moe=config.MoeConfig(num_experts=4, encoder_layers=1, decoder_layers=1, eval_capacity_factor=0.5),
)  # fmt: skip
LAYOUT = Layout.single_device()


def open_teacher(path, dtype='float32'):
  return Teacher.open(config.DistillationConfig(teacher_path=str(path), teacher_dtype=dtype))


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return save(tmp_path_factory.mktemp('teacher'), MODEL)


def test_it_is_as_it_was_trained_but_for_dropped_tokens_and_dtype(path):
  model = open_teacher(path, 'bfloat16').model
  moe = dataclasses.replace(model.moe, eval_capacity_factor=0.5)
  assert (model.activation_dtype, model.remat_policy, model.moe.eval_capacity_factor) == ('bfloat16', 'none', None)
  assert dataclasses.replace(model, activation_dtype='float32', remat_policy='full', moe=moe) == MODEL


def test_a_teacher_of_other_rows_is_refused(path):
  teacher, lengths = open_teacher(path), {'inputs': 6, 'targets': 4}
  data = config.DataConfig(mixture_or_task_name='none', feature_lengths=lengths, batch_size=2)
  run = config.RunConfig(model_dir='none', model=MODEL, data=data, train_steps=1, random_seed=0)
  teacher.check_rows(run)
  decoder = dataclasses.replace(MODEL, num_encoder_layers=0, moe=None)
  with pytest.raises(config.ConfigError, match='has an encoder and the student has no encoder; their rows differ'):
    teacher.check_rows(dataclasses.replace(run, model=decoder))
  prefix = dataclasses.replace(teacher, model=dataclasses.replace(decoder, prefix_lm=True))
  prefix.check_rows(dataclasses.replace(run, model=decoder))
  targets = dataclasses.replace(run, model=decoder, data=dataclasses.replace(data, feature_lengths={'targets': 4}))
  with pytest.raises(config.ConfigError, match='is a prefix LM, and the rows of the student have no inputs'):
    prefix.check_rows(targets)


def test_experts_that_choose_keep_their_capacity(tmp_path):
  moe = config.MoeConfig(num_experts=4, router='expert_choice', encoder_layers=1, decoder_layers=())
  teacher = open_teacher(save(tmp_path, dataclasses.replace(MODEL, moe=moe)))
  assert teacher.model.moe == moe


def test_its_logits_are_those_of_its_model_without_dropping(path):
  teacher = open_teacher(path)
  params = teacher.load(LAYOUT)
  jax.tree.map(np.testing.assert_array_equal, params, CheckpointStore(path).restore_params(7))
  random = np.random.default_rng(0)
  batch = {
    'encoder_input_tokens': jnp.asarray(random.integers(1, 64, (2, 6)), jnp.int32),
    'decoder_input_tokens': jnp.asarray(random.integers(1, 64, (2, 4)), jnp.int32),
  }
  found = jax.jit(lambda params: teacher.logits(params, batch, LAYOUT))(params)
  assert (found.shape, found.dtype) == ((2, 4, 64), jnp.float32)
  roomy, tight = (
    dataclasses.replace(MODEL, moe=dataclasses.replace(MODEL.moe, eval_capacity_factor=factor)) for factor in (4.0, 0.5)
  )
  whole, dropped = (jax.jit(Transformer(model, LAYOUT).apply)({'params': params}, batch)[0] for model in (roomy, tight))
  np.testing.assert_allclose(found, whole, atol=1e-5)
  assert not np.allclose(found, dropped, atol=1e-3)


def test_routers_and_vectors_are_held_in_float32(path):
  held = open_teacher(path, 'bfloat16').abstract_params(LAYOUT)
  dtypes = {'/'.join(key.key for key in path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(held)}
  assert dtypes['encoder/layers_0/mlp/expert/wi/kernel'] == 'bfloat16'
  assert dtypes['token_embedder/embedding'] == 'bfloat16'
  assert dtypes['encoder/layers_0/mlp/router/router_weights/w/kernel'] == 'float32'
  assert dtypes['encoder/encoder_norm/scale'] == 'float32'
  assert dtypes['encoder/relpos_bias/rel_embedding'] == 'float32'


def test_its_digest_is_the_same_wherever_it_lies(path, tmp_path):
  shutil.copytree(path, tmp_path / 'moved')
  moved, other = open_teacher(tmp_path / 'moved'), save(tmp_path / 'other', dataclasses.replace(MODEL, mlp_dim=48))
  assert moved.digest() == open_teacher(path).digest() != open_teacher(other).digest()
  record = open_teacher(path).record()
  assert (record['step'], record['digest']) == (7, moved.digest())
  assert record['path'] != moved.record()['path']
  assert record['parameters'] == sum(x.size for x in jax.tree.leaves(CheckpointStore(path).restore_params(7)))


def test_other_vocabularies_are_refused(path):
  here, teacher = {'name': 'bytes', 'size': 60, 'digest': 'a'}, open_teacher(path)
  teacher.check_vocabulary(64, here)
  with pytest.raises(config.ConfigError, match=r'has 64 rows .* student is 128.*vocab_size=64'):
    teacher.check_vocabulary(128, here)
  known = dataclasses.replace(teacher.facts, vocabulary={'name': 'my.model', 'size': 61, 'digest': 'b'})
  with pytest.raises(config.ConfigError, match=r'vocabulary my\.model of 61 ids.*bytes of 60'):
    dataclasses.replace(teacher, facts=known).check_vocabulary(64, here)


def test_a_teacher_that_is_not_there_is_refused(tmp_path):
  with pytest.raises(config.ConfigError, match=r'DistillationConfig\.teacher_path is .*there is no such folder'):
    open_teacher(tmp_path / 'nowhere')
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'notes.txt').write_text('')
  with pytest.raises(config.ConfigError, match=r'DistillationConfig\.teacher_path is .*notes\.txt'):
    open_teacher(tmp_path / 'other')
