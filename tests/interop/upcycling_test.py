"""Upcycling: what the copies compute at step 0, what routers begin as, and what cannot be upcycled."""

import dataclasses

import jax
import numpy as np
import pytest

from switch_jax import convert, interop
from switch_jax.config import ConfigError, MeshConfig, ModelConfig, MoeConfig, UpcycleConfig
from switch_jax.inference import compute_logits
from switch_jax.interop import upcycling
from switch_jax.interop.loading import open_checkpoint
from switch_jax.interop.stored import Checkpoint, in_memory
from switch_jax.model import abstract_parameters
from switch_jax.parallel import Layout, make_mesh

DENSE = ModelConfig(
  vocab_size=16, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=2, num_decoder_layers=2
)
TOKENS = np.random.default_rng(3).integers(1, 16, (2, 6))
FACTOR = {'eval_capacity_factor': None}  # drop-free


@pytest.fixture(scope='module')
def dense(tmp_path_factory, random_params, write_t5x):
  params = {name: array * np.float32(0.3) for name, array in random_params(DENSE).items()}
  return write_t5x(tmp_path_factory.mktemp('dense') / 'c', params)


def logits_of(config, params):
  return np.asarray(compute_logits(config, params, TOKENS, TOKENS[:, ::-1]))


def converted(dense, tmp_path, *flags):
  arguments = [f'--from=t5x:{dense}', f'--to=switch_jax:{tmp_path}/out', '--upcycle', '--gin.eval_capacity_factor=None']
  assert convert.main([*arguments, *flags]) == 0
  return interop.load('switch_jax', tmp_path / 'out')


def test_the_function_is_kept_while_the_router_is_uniform(dense, tmp_path):
  expected = logits_of(*interop.load('t5x', dense))
  config, params = converted(dense, tmp_path, '--gin.num_experts=4', '--gin.router_stddev=1e-7')
  assert config.moe.num_experts == 4
  assert config.moe.eval_capacity_factor is None
  np.testing.assert_allclose(logits_of(config, params), expected, atol=1e-4)


def test_without_compensation_the_gate_scales(dense, tmp_path):
  """Under a uniform router: the dense function with the Switch layers' output kernels divided by the experts."""
  config, params = interop.load('t5x', dense)
  for stack in ('encoder', 'decoder'):
    params[stack]['layers_1']['mlp']['wo']['kernel'] /= 4
  expected = logits_of(config, params)
  flags = ['--gin.num_experts=4', '--gin.router_stddev=1e-7', '--gin.compensate_gate=False']
  np.testing.assert_allclose(logits_of(*converted(dense, tmp_path, *flags)), expected, atol=1e-4)


def sparse(num_experts, **fields):
  return dataclasses.replace(DENSE, moe=MoeConfig(num_experts=num_experts, **fields))


def test_copies_and_routers(dense):
  old = open_checkpoint('t5x', str(dense))
  new = upcycling.upcycle(old, sparse(3), UpcycleConfig(router_stddev=0.5))
  wi, wo = (old.arrays[f'encoder/layers_1/mlp/{k}/kernel'].read() for k in ('wi', 'wo'))
  for expert in range(3):
    np.testing.assert_array_equal(new.arrays['encoder/layers_1/mlp/expert/wi/kernel'].read()[expert], wi)
    np.testing.assert_array_equal(new.arrays['encoder/layers_1/mlp/expert/wo/kernel'].read()[expert], wo * 3)
  part = new.arrays['encoder/layers_1/mlp/expert/wi/kernel'].read((slice(1, 2), slice(0, 3), slice(5, 9)))
  np.testing.assert_array_equal(part[0], wi[:3, 5:9])
  name = 'decoder/layers_1/mlp/router/router_weights/w/kernel'
  router = new.arrays[name].read()
  assert 0.2 < router.std() < 0.8
  again = upcycling.upcycle(old, sparse(3), UpcycleConfig(router_stddev=0.5))
  np.testing.assert_array_equal(router, again.arrays[name].read())
  other = upcycling.upcycle(old, sparse(3), UpcycleConfig(router_stddev=0.5, seed=1))
  assert not np.array_equal(router, other.arrays[name].read())


def test_more_and_fewer_experts(tmp_path, random_params, write_t5x):
  params = random_params(sparse(3))
  old = open_checkpoint('t5x', str(write_t5x(tmp_path / 'c', params)))
  wi, wo = (f'encoder/layers_1/mlp/expert/{k}/kernel' for k in ('wi', 'wo'))
  router = 'encoder/layers_1/mlp/router/router_weights/w/kernel'
  more = upcycling.upcycle(old, sparse(6), UpcycleConfig()).arrays
  np.testing.assert_array_equal(more[wi].read(), np.concatenate([params[wi]] * 2))
  np.testing.assert_array_equal(more[wo].read(), np.concatenate([params[wo]] * 2) * 2)
  np.testing.assert_array_equal(more[router].read()[:, :3], params[router])
  difference = more[router].read()[:, 3:] - params[router]
  assert 0 < np.abs(difference).max() < 0.01
  fewer = upcycling.upcycle(old, sparse(2), UpcycleConfig()).arrays
  np.testing.assert_array_equal(fewer[wo].read(), params[wo][:2])
  np.testing.assert_array_equal(fewer[router].read(), params[router][:, :2])
  assert fewer[router].shape == (8, 2)


@pytest.mark.parametrize('kind', ['linear', 'mlp'])
def test_experts_in_attention_are_copied_too(random_params, kind):
  """The gate halves as experts double, and what it multiplies doubles."""
  attention = dict(encoder_attention_layers=2, attention_expert=kind)
  arrays = random_params(sparse(3, **attention))
  old = Checkpoint('/c', {name: in_memory(array) for name, array in arrays.items()})
  new = upcycling.upcycle(old, sparse(6, **attention), UpcycleConfig()).arrays
  layer = 'encoder/layers_1/attention/query_key_value'
  for last in (f'{layer}/expert/query/kernel', f'{layer}/expert/key_value/kernel'):
    np.testing.assert_array_equal(new[last].read(), np.concatenate([arrays[last]] * 2) * 2)
  if kind == 'mlp':
    first = f'{layer}/expert/wi/kernel'
    np.testing.assert_array_equal(new[first].read(), np.concatenate([arrays[first]] * 2))
  router = f'{layer}/router/router_weights/w/kernel'
  np.testing.assert_array_equal(new[router].read()[:, :3], arrays[router])
  dense = Checkpoint('/c', {name: in_memory(array) for name, array in random_params(DENSE).items()})
  with pytest.raises(
    ConfigError, match=r'these could be made: encoder/layers_1/attention/query_key_value/expert/key_value'
  ):
    upcycling.upcycle(dense, sparse(3, **attention), UpcycleConfig())


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (DENSE, 'the model has none'),
    (sparse(3, expert_mlp_dim=9), r'nothing of which these could be made: .*\(3, 12, 8\)|mlp/expert/wi'),
    (dataclasses.replace(sparse(3), emb_dim=6), 'could be made'),
  ],
)
def test_what_cannot_be_upcycled(dense, config, message):
  with pytest.raises(ConfigError, match=message):
    upcycling.upcycle(open_checkpoint('t5x', str(dense)), config, UpcycleConfig())


def test_experts_cannot_become_dense(tmp_path, random_params, write_t5x):
  folder = write_t5x(tmp_path / 'c', random_params(sparse(3, encoder_layers=1)))
  with pytest.raises(ConfigError, match='layers with experts cannot become dense'):
    upcycling.upcycle(open_checkpoint('t5x', str(folder)), sparse(3), UpcycleConfig())


def test_number_of_experts_must_be_given(dense, tmp_path, capsys):
  assert convert.main([f'--from=t5x:{dense}', f'--to=t5x:{tmp_path}/out', '--upcycle']) == 1
  assert 'needs the number of experts' in capsys.readouterr().err


# A run that begins from them, on a mesh.


@pytest.fixture(scope='module')
def layout():
  return Layout(make_mesh(MeshConfig(data=2, expert=4, model=1), 8))


def test_straight_onto_the_mesh(dense, layout):
  config = sparse(4, sequences_per_group=1)
  for scan in (False, True):
    config = dataclasses.replace(config, scan_layers=scan)
    abstract = abstract_parameters(config, layout)
    params = interop.initial_parameters(f't5x:{dense}', config, abstract, UpcycleConfig())
    assert jax.tree.map(lambda x: (x.shape, x.sharding), params) == jax.tree.map(
      lambda x: (x.shape, x.sharding), abstract
    )
  old = open_checkpoint('t5x', str(dense)).arrays['decoder/layers_1/mlp/wi/kernel'].read()
  wi = np.asarray(params['decoder']['blocks']['layers_1']['mlp']['expert']['wi']['kernel'])
  assert wi.shape == (1, 4, 8, 12)
  np.testing.assert_array_equal(wi[0, 3], old)


def test_a_dense_checkpoint_for_a_switch_model_is_refused_with_the_remedy(dense, layout):
  config = sparse(4, sequences_per_group=1)
  with pytest.raises(ConfigError, match=r'is a dense T5: set config\.RunConfig\.upcycle'):
    interop.initial_parameters(str(dense), config, abstract_parameters(config, layout))


@pytest.mark.parametrize(('format', 'folder'), [('t5x', 't5x_switch_base_tiny'), ('huggingface', 'hf_switch_tiny')])
def test_other_formats_onto_the_mesh(checkpoints, layout, format, folder):
  config, expected = interop.load(format, checkpoints / folder, sequences_per_group=1)
  abstract = abstract_parameters(config, layout)
  for path in (checkpoints / folder, f'{format}:{checkpoints / folder}'):
    params = interop.initial_parameters(str(path), config, abstract)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_recorded_activation_that_differs_is_refused(checkpoints, layout):
  config, _ = interop.load('huggingface', checkpoints / 'hf_switch_tiny')
  config = dataclasses.replace(config, mlp_activations=('gelu',))
  with pytest.raises(ConfigError, match=r"mlp_activations is \('gelu',\), and .* was trained with \('relu',\)"):
    interop.initial_parameters(str(checkpoints / 'hf_switch_tiny'), config, abstract_parameters(config, layout))


@pytest.mark.parametrize(
  ('fields', 'gates'),
  [
    (dict(router='topk', num_selected_experts=3, gate_scale=2.0), 2.0),
    (dict(router='topk', num_selected_experts=3, normalize_gates=False), 3 / 4),
    (dict(router_scores='sigmoid'), 0.5),
  ],
  ids=str,
)
def test_gates_of_another_sum_are_compensated_too(dense, fields, gates):
  """And biases begin with 0."""
  old = open_checkpoint('t5x', str(dense))
  target = sparse(4, bias_update_rate=1e-3, aux_loss_factor=0.0, **fields)
  new = upcycling.upcycle(old, target, UpcycleConfig())
  wo = old.arrays['encoder/layers_1/mlp/wo/kernel'].read()
  np.testing.assert_allclose(new.arrays['encoder/layers_1/mlp/expert/wo/kernel'].read()[3], wo / gates, rtol=1e-6)
  np.testing.assert_array_equal(new.arrays['encoder/layers_1/mlp/router/expert_bias'].read(), np.zeros(4))
