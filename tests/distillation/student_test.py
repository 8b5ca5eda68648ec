"""Distillation: the step beside ordinary training, on every mesh, from files, and what cannot work."""

import dataclasses

import jax
import numpy as np
import pytest

from switch_jax import config
from switch_jax.checkpoints import CheckpointStore
from switch_jax.distillation.student import NO_LESSONS, Distillation
from switch_jax.interop import find_inheritance, inherit
from switch_jax.model import init_parameters
from switch_jax.parallel import Layout, make_mesh
from switch_jax.training.state import init_state, plan_state
from switch_jax.training.step import make_train_step
from tests.distillation.saved_teachers import DATA, save

MODEL = config.ModelConfig(
  vocab_size=64, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2,
)  # fmt: skip
SPARSE = dataclasses.replace(MODEL, moe=config.MoeConfig(num_experts=4, jitter_noise=0.0))
ONE, EIGHT = (1, 1, 1), (2, 2, 2)
FIXTURES = 'tests/fixtures'


def batch():
  random = np.random.default_rng(0)
  inputs, targets = (random.integers(1, 64, (8, n), dtype=np.int32) for n in (12, 6))
  weights = np.ones_like(targets)
  weights[2, 2:] = 0
  return {
    'encoder_input_tokens': inputs,
    'encoder_segment_ids': np.ones_like(inputs),
    'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    'decoder_target_tokens': targets,
    'decoder_segment_ids': weights,
    'decoder_loss_weights': weights,
  }


def run_of(model=MODEL, **distillation):
  made = config.DistillationConfig(**{'teacher_dtype': 'float32'} | distillation) if distillation else None
  return config.RunConfig(
    model_dir='unused', model=model, data=DATA, train_steps=3, random_seed=0, distillation=made
  )  # fmt: skip


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  return save(tmp_path_factory.mktemp('teacher'), SPARSE)


def train(run, shape=ONE, steps=3):
  """Returns the losses of a few steps, the last metrics, and the parameters."""
  mesh = config.MeshConfig(data=shape[0], expert=shape[1], model=shape[2])
  layout = Layout(make_mesh(mesh, None, jax.devices()[: np.prod(shape)]))
  plan, distillation = plan_state(run, layout), Distillation.open(run)
  lessons = distillation.lessons(layout, {}, 0)
  state = init_state(run, layout, plan, distillation.initial_parameters(layout))
  step = make_train_step(run, layout, plan, lessons=lessons)
  rows, losses = jax.device_put(batch(), layout.batch_sharding()), []
  for _ in range(steps):
    state, metrics = step(state, rows, *lessons.arguments)
    losses.append(float(metrics['loss']))
  return losses, jax.device_get(metrics), jax.device_get(state.params)


@pytest.fixture(scope='module')
def mixed(teacher):
  return train(run_of(teacher_path=teacher, temperature=2.0))


def test_without_the_soft_loss_a_step_is_an_ordinary_one_bit_for_bit(teacher):
  ordinary = train(run_of())
  soft_weight_0 = train(run_of(teacher_path=teacher, soft_weight=0.0, initialize=()))
  assert ordinary[0] == soft_weight_0[0]
  jax.tree.map(np.testing.assert_array_equal, ordinary[2], soft_weight_0[2])


@pytest.mark.parametrize('model', [MODEL, dataclasses.replace(SPARSE, moe=dataclasses.replace(
  SPARSE.moe, aux_loss_factor=0.0, train_capacity_factor=None))], ids=['dense', 'sparse'])  # fmt: skip
def test_a_student_equal_to_its_teacher_learns_nothing(model, tmp_path):
  """Float32, no dropout: the gradient vanishes with soft_weight 1, and does not with the labels."""
  path, layout = save(tmp_path, model), Layout.single_device()
  norms = {}
  for weight in (1.0, 0.5):
    run = run_of(model, teacher_path=path, soft_weight=weight, initialize=())
    plan, lessons = plan_state(run, layout), Distillation.open(run).lessons(layout, {}, 0)
    (theirs,) = lessons.arguments
    equal = jax.tree.map(lambda x: x.copy(), theirs)  # the state is donated
    state, step = init_state(run, layout, plan, equal), make_train_step(run, layout, plan, lessons=lessons)
    _, metrics = step(state, batch(), theirs)
    norms[weight] = float(metrics['grad_norm'])
  assert norms[1.0] < 1e-6
  assert norms[0.5] > 0.01


def test_the_loss_is_the_mix(teacher):
  losses = {}
  for weight in (0.0, 0.25, 1.0):
    run = run_of(teacher_path=teacher, soft_weight=weight, temperature=2.0)
    losses[weight], metrics, _ = train(run, steps=1)
    if weight:
      soft = 4 * float(metrics['soft_cross_ent_loss'])
      expected = (1 - weight) * float(metrics['cross_ent_loss']) + weight * soft
      np.testing.assert_allclose(losses[weight][0], expected, rtol=1e-6)
      assert 0 < metrics['teacher_divergence'] < metrics['soft_cross_ent_loss']
  np.testing.assert_allclose(losses[0.25][0], 0.75 * losses[0.0][0] + 0.25 * losses[1.0][0], rtol=1e-6)


def test_eight_devices_give_the_losses_of_one(teacher, mixed):
  """The teacher's experts lie on the expert axis of the student's mesh."""
  eight = train(run_of(teacher_path=teacher, temperature=2.0), EIGHT)
  np.testing.assert_allclose(mixed[0], eight[0], rtol=2e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), mixed[2], eight[2])


def test_a_teacher_in_bfloat16_is_near_one_in_float32(teacher, mixed):
  half = run_of(teacher_path=teacher, temperature=2.0, teacher_dtype='bfloat16')
  np.testing.assert_allclose(mixed[0], train(half, EIGHT)[0], rtol=0.01)


def test_microbatches_are_the_whole_batch(teacher, mixed):
  run = dataclasses.replace(run_of(teacher_path=teacher, temperature=2.0), num_microbatches=2)
  np.testing.assert_allclose(mixed[0], train(run)[0], rtol=2e-6)


def test_a_student_begins_with_what_is_not_experts(teacher):
  kinds = config.INHERITED_KINDS
  found = find_inheritance(teacher, kinds, MODEL)
  assert set(found.new) == {
    f'{stack}/layers_1/mlp/{w}/kernel' for stack in ('encoder', 'decoder') for w in ('wi', 'wo')
  }
  assert set(found.new.values()) == {'the teacher has experts there'}
  layout = Layout.single_device()
  fresh = init_parameters(MODEL, layout, jax.random.key(0))
  theirs = CheckpointStore(teacher).restore_params(7)
  student = inherit(teacher, found, MODEL, fresh)
  for path, leaf in jax.tree_util.tree_leaves_with_path(student):
    name = '/'.join(key.key for key in path)
    source = fresh if name in found.new else theirs
    for key in path:
      source = source[key.key]
    np.testing.assert_array_equal(leaf, source, err_msg=name)


@pytest.mark.parametrize('kind', config.INHERITED_KINDS)
def test_each_kind_can_be_left_out(teacher, kind):
  others = tuple(k for k in config.INHERITED_KINDS if k != kind)
  alone, without, whole = (
    set(find_inheritance(teacher, k, MODEL).taken) for k in ((kind,), others, config.INHERITED_KINDS)
  )
  assert alone
  assert alone | without == whole
  assert not alone & without


def test_a_scanned_student_begins_with_the_same(teacher):
  """Blocks hold taken and new layers side by side, also where the mesh splits them."""
  from switch_jax.interop import separate_layers

  scanned = dataclasses.replace(MODEL, scan_layers=True)
  found = find_inheritance(teacher, config.INHERITED_KINDS, scanned)
  layout = Layout(make_mesh(config.MeshConfig(data=2, expert=2, model=2), None, jax.devices()))
  fresh = init_parameters(scanned, layout, jax.random.key(0))
  student, fresh = (
    separate_layers(jax.device_get(p), scanned) for p in (inherit(teacher, found, scanned, fresh), fresh)
  )
  theirs = CheckpointStore(teacher).restore_params(7)
  np.testing.assert_array_equal(
    student['encoder']['layers_0']['mlp']['wi']['kernel'], theirs['encoder']['layers_0']['mlp']['wi']['kernel']
  )
  np.testing.assert_array_equal(
    student['encoder']['layers_1']['mlp']['wi']['kernel'], fresh['encoder']['layers_1']['mlp']['wi']['kernel']
  )
  np.testing.assert_array_equal(
    student['decoder']['layers_1']['self_attention']['out']['kernel'],
    theirs['decoder']['layers_1']['self_attention']['out']['kernel'],
  )


@pytest.mark.parametrize('name', ['t5x_switch_base_tiny', 'hf_switch_tiny'])
def test_teachers_of_other_software(name, pytestconfig):
  path = str(pytestconfig.rootpath / FIXTURES / name)
  facts = Distillation.open(run_of(teacher_path=path, initialize=())).teacher.facts
  student = dataclasses.replace(facts.model, moe=None, dropout_rate=0.0)
  run = run_of(student, teacher_path=path)
  losses, metrics, _ = train(run, steps=2)
  assert np.isfinite(losses).all()
  assert metrics['teacher_divergence'] > 0
  assert len(find_inheritance(path, config.INHERITED_KINDS, student).taken) > 20


def test_a_teacher_with_switch_attention_and_one_whose_experts_choose(tmp_path):
  for number, moe in enumerate((
    config.MoeConfig(num_experts=4, encoder_attention_layers=(0,), jitter_noise=0.0),
    config.MoeConfig(num_experts=4, router='expert_choice', decoder_layers=()),
  )):  # fmt: skip
    path = save(tmp_path / str(number), dataclasses.replace(MODEL, moe=moe))
    losses, _, _ = train(run_of(teacher_path=path), steps=1)
    assert np.isfinite(losses).all()


def test_nothing_to_begin_with_is_refused(teacher):
  wide = dataclasses.replace(MODEL, emb_dim=24, num_heads=3)
  with pytest.raises(config.ConfigError, match=r'nothing to initialise the student with .*\(24,\) here'):
    find_inheritance(teacher, config.INHERITED_KINDS, wide)


def test_a_student_goes_on_with_its_own_teacher_only(teacher, tmp_path):
  run = run_of(teacher_path=teacher)
  (recorded,) = Distillation.open(run).record(NO_LESSONS).values()
  assert recorded['step'] == 7
  assert recorded['parameters'] > 0
  assert 'encoder/layers_0/mlp/wi/kernel' in recorded['initialized']
  again = Distillation.open(run, recorded, begins=False)
  assert again.inheritance is None
  assert again.record(NO_LESSONS) == {'teacher': recorded}
  other = save(tmp_path, dataclasses.replace(SPARSE, mlp_dim=48))
  with pytest.raises(config.ConfigError, match=f'this run began with step 7 of .*TEACHER_PATH={recorded["path"]}'):
    Distillation.open(run_of(teacher_path=other), recorded, begins=False)


def test_settings_that_contradict_each_other():
  with pytest.raises(config.ConfigError, match=r'soft_weight is 1\.5; it is a share'):
    config.DistillationConfig(teacher_path='x', soft_weight=1.5)
  with pytest.raises(config.ConfigError, match='top_k is 4; it is for teacher_logits'):
    config.DistillationConfig(teacher_path='x', top_k=4)
  with pytest.raises(config.ConfigError, match='can begin with one of the two only'):
    dataclasses.replace(run_of(teacher_path='x'), initial_checkpoint_path='y')


def test_where_a_teacher_lies_is_no_part_of_what_a_run_is():
  a, b, c = (run_of(teacher_path=p, soft_weight=w).identity() for p, w in (('x', 0.25), ('y', 0.25), ('x', 0.5)))
  assert a == b != c
