"""The training step compiled for TPUs that are not there."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from switch_jax import plan
from switch_jax.config import ConfigError, DataConfig, MeshConfig, ModelConfig, MoeConfig, RunConfig
from switch_jax.parallel import make_mesh
from switch_jax.plan import ahead_of_time

ROOT = pathlib.Path(__file__).resolve().parents[2]
NEEDS_LIBTPU = pytest.mark.skipif(
  not importlib.util.find_spec('libtpu'), reason="libtpu is not installed: pip install -e '.[tpu]'"
)
KEYS = {
  'topology', 'cores', 'parameters', 'active_parameters', 'parameter_bytes_per_core', 'optimizer_bytes_per_core',
  'temporary_bytes_per_core', 'hbm_bytes_per_core', 'hbm_bytes_available', 'fits', 'flops_per_core',
  'checkpoint_bytes', 'checkpoint_bytes_per_host', 'hosts',
  'model_flops_per_core', 'collectives', 'slots_per_token', 'compile_seconds', 'estimate', 'empty_slot_flops_per_core',
}  # fmt: skip

TINY = ModelConfig(
  vocab_size=128, emb_dim=128, num_heads=2, head_dim=64, mlp_dim=512, num_encoder_layers=4, num_decoder_layers=4,
  activation_dtype='bfloat16', scan_layers=True,
  moe=MoeConfig(num_experts=8, encoder_layers=1, decoder_layers=1, train_capacity_factor=1.0),
)  # fmt: skip


def tiny_run(model=TINY, batch=16, **mesh):
  data = DataConfig(mixture_or_task_name='none', feature_lengths={'inputs': 64, 'targets': 32}, batch_size=batch)
  return RunConfig(model_dir='none', model=model, data=data, train_steps=1, random_seed=0, mesh=MeshConfig(**mesh))


@pytest.fixture(scope='module')
def scanned(tmp_path_factory):
  """Returns the plan of the tiny model on four chips, and where its executable was kept."""
  file = tmp_path_factory.mktemp('plan') / 'step.bin'
  return plan.make_plan(tiny_run(), 'v3:2x2', str(file)), file


@NEEDS_LIBTPU
class TestAheadOfTime:
  def test_plan(self, scanned):
    result, _ = scanned
    assert (result.cores, result.device_kind) == (8, 'TPU v3')
    assert result.mesh == {'data': 1, 'expert': 8, 'model': 1}
    assert result.fits
    assert result.hbm_bytes_per_core >= result.parameter_bytes_per_core + result.temporary_bytes_per_core
    assert result.hbm_bytes_available == pytest.approx(15.48 * 2**30, rel=1e-3)
    assert result.slots_per_token == {'encoder': 1.0, 'decoder': 1.0}
    assert result.loops == {'encoder': 4, 'decoder': 4}
    assert result.collectives['all-to-all']['count'] == 4 * 8, 'two forward, two backward in each of eight layers'
    # Of each stack, what is no expert and large enough to be kept in parts: 4 and 8 matrices of 128 x 128 in bfloat16.
    assert result.collectives['all-gather'] == {'count': 12, 'bytes': 12 * 4 * 128 * 128 * 2}
    # One expert of each layer is local; its matrices are the bulk of what lies on a core.
    assert result.parameter_bytes_per_core < 4 * result.parameters / 2

  def test_flops_of_scanned_layers_are_those_of_layers_one_by_one(self, scanned):
    one_by_one = plan.make_plan(tiny_run(dataclasses.replace(TINY, scan_layers=False)), 'v3:2x2')
    assert scanned[0].flops_per_core == pytest.approx(one_by_one.flops_per_core, rel=0.02)
    assert scanned[0].collectives['all-to-all'] == one_by_one.collectives['all-to-all']
    assert scanned[0].flops_per_core >= scanned[0].model_flops_per_core
    # The body of a loop is scheduled otherwise than the same layers in a row.
    assert scanned[0].estimate.compute_seconds == pytest.approx(one_by_one.estimate.compute_seconds, rel=0.5)
    # One by one the matrices are too small to be kept in parts.
    assert scanned[0].estimate.exchange_seconds == pytest.approx(one_by_one.estimate.exchange_seconds, rel=0.3)

  def test_executable_is_kept(self, scanned):
    payload, in_tree, out_tree = pickle.loads(scanned[1].read_bytes())
    assert len(payload) > 1000
    assert min(in_tree.num_leaves, out_tree.num_leaves) > 1

  def test_report(self, scanned):
    text = plan.describe(scanned[0], tiny_run())
    assert 'v3:2x2: 8 TPU v3 cores, mesh data=1, expert=8, model=1' in text
    assert 'of the 15.48 GiB' in text
    assert 'fits' in text
    assert '32 all-to-all' in text
    assert re.search(r'^checkpoint  (.* [GM]iB), of which a host writes \1 \(1 host\)$', text, re.M)

  def test_slots_that_shards_share(self):
    moe = dataclasses.replace(TINY.moe, num_experts=16, dispatch='ragged')
    model = dataclasses.replace(TINY, moe=moe, num_encoder_layers=1, num_decoder_layers=1, scan_layers=False)
    result = plan.make_plan(tiny_run(model, 8), 'v3:2x2')
    assert result.slots_per_token == {'encoder': 1.0, 'decoder': 1.0}
    assert result.capacity == {'encoder': 32, 'decoder': 16}
    assert result.collectives['all-to-all']['count'] == 2 * (2 + 4), (
      'counts there and back, tokens there and back twice'
    )

  @pytest.mark.parametrize(
    ('name', 'message'),
    [
      ('v3:3x5', r"--topology is 'v3:3x5', which libtpu refuses: .*not divisible.* Valid are v2:4x4, v3:4x4"),
      ('v9:4x4', 'which libtpu refuses: Invalid TPU'),
      ('a pod', 'v5p:4x4x4, v6e:4x4, tpu7x:2x2x4: the generation and the chips along each side'),
    ],
  )
  def test_unknown_topology(self, name, message):
    with pytest.raises(ConfigError, match=message):
      plan.topology_devices(name)

  def test_what_does_not_divide_over_the_topology(self):
    with pytest.raises(ConfigError, match=r'batch_size is 12, which the 8 .* shards of the mesh do not divide'):
      plan.make_plan(tiny_run(batch=12), 'v3:2x2')

  def test_two_slices_are_joined_by_the_data_axis(self):
    devices = plan.topology_devices('v5e:4x4', num_slices=2)
    mesh = make_mesh(MeshConfig(num_slices=2, data=4, expert=4, model=2), 4, devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (slices[:2] == 0).all()
    assert (slices[2:] == 1).all()
    with pytest.raises(ConfigError, match='the 32 devices are in 2 slices'):
      make_mesh(MeshConfig(expert=4), 4, devices)

  def test_command(self, tmp_path):
    """One process: what does not fit is an answer; nothing but the answer is printed, and MODEL_DIR is not touched."""
    command = [
      *(sys.executable, '-m', 'switch_jax.main', '--run_mode=plan', '--topology=v3:2x2', '--json=plan.json'),
      *('--gin_file=gin/models/switch_tiny.gin', '--gin_file=gin/runs/pretrain.gin'),
      *('--gin.BATCH_SIZE=65536', f'--gin.MODEL_DIR={tmp_path / "model"}'),
    ]
    variables = {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': ''}
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'} | variables
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, '')
    assert 'does not fit' in result.stdout
    for knob in ('remat_policy', 'BATCH_SIZE', 'MeshConfig.model'):
      assert knob in result.stdout
    numbers = json.loads((tmp_path / 'plan.json').read_text())
    assert set(numbers) >= KEYS
    assert numbers['fits'] is False
    assert numbers['hbm_bytes_per_core'] > numbers['hbm_bytes_available'] > 15 * 2**30
    assert numbers['flops_per_core'] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ['plan.json']


class TestMistakes:
  def test_no_libtpu(self, monkeypatch):
    monkeypatch.setattr(ahead_of_time.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match=r"libtpu, .* is not installed; .*pip install -e '\.\[tpu\]'"):
      plan.topology_devices('v3:4x4')

  @pytest.mark.parametrize(
    ('message', 'sizes'),
    [
      (
        'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (2.00T) exceeds '
        'available HBM (15.48G).',
        (2.0 * 2**40, 15.48 * 2**30),
      ),
      (
        'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.50G of 15.48G hbm. Exceeded hbm capacity '
        'by 1.02G.',
        (16.5 * 2**30, 15.48 * 2**30),
      ),
      ('INTERNAL: something else', None),
    ],
  )
  def test_memory_in_the_compilers_messages(self, message, sizes):
    found = ahead_of_time._out_of_memory(RuntimeError(message))
    assert found == (sizes and pytest.approx(sizes))
