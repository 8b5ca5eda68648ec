"""Which form a layout gets: by device, by what was asked for; and what cannot be asked for."""

import re
import types

import jax
import numpy as np
import pytest

from switch_jax import kernels
from switch_jax.config import ConfigError, DataConfig, MeshConfig, ModelConfig, MoeConfig, RunConfig
from switch_jax.config.mesh import KERNELS
from switch_jax.kernels import table
from switch_jax.model.placement import make_layout
from switch_jax.parallel import Layout, make_mesh
from switch_jax.plan.ahead_of_time import abstract_batch
from switch_jax.training.state import plan_state
from switch_jax.training.step import make_train_step


def layout_on(platform, kind='', size=1):
  """Returns what the table looks at of a layout over devices that need not exist."""
  device = types.SimpleNamespace(platform=platform, device_kind=kind)
  mesh = types.SimpleNamespace(devices=np.array([device] * size, object), size=size)
  return types.SimpleNamespace(mesh=mesh, kernels=())


@pytest.mark.parametrize('kind', ['TPU v2', 'TPU v3', 'TPU v4', 'TPU v5e', 'TPU v5', 'TPU v6 lite', 'TPU7x'])
def test_no_tpu_gets_a_form_for_the_cpu(kind):
  chosen = table.forms.__wrapped__(layout_on('tpu', kind, 8))
  assert chosen.keys() == KERNELS.keys()
  assert not [form for operation, form in chosen.items() if 'CPU' in KERNELS[operation][form]]


def test_a_cpu_gets_its_own_and_several_of_them_no_loop_over_split_stacks():
  one = table.forms.__wrapped__(layout_on('cpu'))
  assert one == {
    'attention': 'by_row',
    'projections': 'together',
    'dense_product': 'own_gradient',
    'expert_product': 'own_gradient',
    'positions': 'sorted',
    'drop_free': 'blocks',
    'exchange': 'gathered',
    'update': 'in_place',
  }
  assert table.forms.__wrapped__(layout_on('cpu', size=8)) == one | {'update': 'plain'}


@pytest.mark.parametrize(('kind', 'size'), [('NVIDIA H100 80GB HBM3', 1), ('NVIDIA A100-SXM4-40GB', 8), ('AMD', 2)])
def test_a_gpu_gets_no_form_that_was_made_for_another_machine(kind, size):
  plain = {operation: next(iter(known)) for operation, known in KERNELS.items()}
  chosen = table.forms.__wrapped__(layout_on('gpu', kind, size))
  assert chosen == plain | {'positions': 'sorted', 'drop_free': 'blocks'}
  told = [KERNELS[operation][form] for operation, form in chosen.items()]
  assert not [text for text in told if 'CPU' in text or 'TPU' in text]


@pytest.mark.parametrize('options', [{}, {'train_capacity_factor': None, 'dispatch': 'ragged'}])
def test_the_training_step_of_a_gpu_can_be_lowered_for_cuda(options):
  """JAX has a rule for every operation of it there; no GPU is needed, and nothing is compiled."""
  kernels_of_a_gpu = dict(table.forms.__wrapped__(layout_on('gpu', size=8)))
  model = ModelConfig(
    vocab_size=64,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    num_encoder_layers=2,
    num_decoder_layers=2,
    moe=MoeConfig(num_experts=4, **options),
  )
  data = DataConfig(mixture_or_task_name='a_task', feature_lengths={'inputs': 8, 'targets': 8}, batch_size=8)
  mesh = MeshConfig(kernels=kernels_of_a_gpu)
  run = RunConfig(model_dir='/d', model=model, data=data, train_steps=1, random_seed=0, mesh=mesh)
  layout = make_layout(run, jax.devices())
  state = plan_state(run, layout)
  step = make_train_step(run, layout, state).trace(state.abstract, abstract_batch(run, layout))
  text = step.lower(lowering_platforms=('cuda',)).as_text()
  assert 'custom_call @tpu' not in text


def test_an_unknown_machine_gets_the_plain_forms():
  plain = {operation: next(iter(known)) for operation, known in KERNELS.items()}
  assert table.forms.__wrapped__(layout_on('neuromancer')) == plain


def test_what_is_asked_for_wins_and_is_shown():
  mesh = MeshConfig(kernels={'attention': 'plain'})
  layout = Layout.of(mesh, make_mesh(mesh, None, jax.devices()[:1]))
  assert kernels.forms(layout)['attention'] == 'plain'
  assert kernels.describe(layout).startswith('attention plain, projections together, dense_product own_gradient')


@pytest.mark.parametrize(
  ('asked', 'message'),
  [
    ({'atention': 'plain'}, "operation 'atention'; known are attention, .* Did you mean 'attention'"),
    ({'attention': 'by_rows'}, "'attention': 'by_rows', which is none of its forms .* Did you mean 'by_row'"),
  ],
)
def test_what_is_not_known_is_refused(asked, message):
  with pytest.raises(ConfigError, match=message):
    MeshConfig(kernels=asked)


@pytest.mark.parametrize(('kind', 'form'), [('TPU v3', 'ragged'), ('TPU v5', 'ragged'), ('TPU v5 lite', 'gathered')])
def test_a_tpu_exchanges_as_its_links_allow(kind, form):
  assert table.forms.__wrapped__(layout_on('tpu', kind, 8))['exchange'] == form


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_a_collective_for_tpus_is_refused_elsewhere(platform):
  layout = layout_on(platform, size=8)
  layout.kernels = (('exchange', 'ragged'),)
  message = (
    f"MeshConfig.kernels has 'exchange': 'ragged', which is a collective for TPUs, and the devices are {platform}; "
    "use 'gathered', or leave it out."
  )
  with pytest.raises(ConfigError, match=f'^{re.escape(message)}$'):
    table.forms.__wrapped__(layout)


def test_a_kernel_for_tpus_is_refused_elsewhere():
  layout = layout_on('cpu')
  layout.kernels = (('attention', 'fused'),)
  with pytest.raises(ConfigError, match=r"'attention': 'fused', which is a kernel for TPUs.* use 'plain' or 'by_row'"):
    table.forms.__wrapped__(layout)
  layout.kernels = (('drop_free', 'grouped'),)
  with pytest.raises(ConfigError, match=r"'grouped', which is a kernel for TPUs.* use 'ragged' or 'blocks'"):
    table.forms.__wrapped__(layout)
  layout = layout_on('tpu', 'TPU v3', 8)
  assert table.forms.__wrapped__(layout)['attention'] == 'fused'


def test_in_place_on_several_devices_is_refused():
  mesh = MeshConfig(kernels={'update': 'in_place'})
  layout = Layout.of(mesh, make_mesh(mesh, None, jax.devices()[:8]))
  with pytest.raises(ConfigError, match=re.escape("'update': 'in_place', which would gather")):
    kernels.forms(layout)
