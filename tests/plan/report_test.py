"""A plan in words and as JSON, and outputs that cannot be written."""

import dataclasses
import json

import pytest

from switch_jax import main
from switch_jax.config import ConfigError, DataConfig, MeshConfig, ModelConfig, RunConfig
from switch_jax.plan.ahead_of_time import Plan
from switch_jax.plan.estimate import Estimate
from switch_jax.plan.report import check_outputs, describe, write_json

GIB = 2**30
PLAN = Plan(
  topology='v3:2x2', device_kind='TPU v3', cores=8, mesh={'data': 1, 'expert': 8, 'model': 1},
  parameters=12345, active_parameters=2345, parameter_bytes_per_core=GIB, optimizer_bytes_per_core=GIB // 2,
  temporary_bytes_per_core=4 * GIB, hbm_bytes_per_core=6 * GIB, hbm_bytes_available=15 * GIB, fits=True,
  checkpoint_bytes=12 * GIB, checkpoint_bytes_per_host=7 * GIB, hosts=2,
  flops_per_core=3e12, model_flops_per_core=2e12, score_flops_per_core=5e11, empty_slot_flops_per_core=3e11,
  collectives={'all-to-all': {'count': 32, 'bytes': 2 * GIB}}, slots_per_token={'encoder': 1.25, 'decoder': None},
  capacity={'encoder': 10, 'decoder': None}, compile_seconds=12.3, loops={},
  estimate=Estimate(0.125, 0.025, 0.003, {'fusion': 7, 'sort': 2}, 64e12),
)  # fmt: skip
TOO_LARGE = dataclasses.replace(
  PLAN, temporary_bytes_per_core=None, hbm_bytes_per_core=20 * GIB, fits=False, flops_per_core=None, collectives=None,
  estimate=None,
)  # fmt: skip


def run_of(mesh=None, **model):
  model = ModelConfig(
    vocab_size=8, emb_dim=4, num_heads=2, head_dim=2, mlp_dim=4, num_encoder_layers=1, num_decoder_layers=1, **model
  )
  data = DataConfig(mixture_or_task_name='none', feature_lengths={'inputs': 64, 'targets': 32}, batch_size=32)
  return RunConfig(model_dir='none', model=model, data=data, train_steps=1, random_seed=0, mesh=mesh or MeshConfig())


def test_what_fits():
  assert describe(PLAN, run_of()).splitlines() == [
    'topology    v3:2x2: 8 TPU v3 cores, mesh data=1, expert=8, model=1',
    'batch       32 rows of 64 inputs and 32 targets',
    'parameters  12,345 (2,345 active per token)',
    'a core      parameters 1.00 GiB, optimizer 0.50 GiB, temporaries 4.00 GiB',
    'memory      6.00 GiB of the 15.00 GiB that the compiler grants a program on TPU v3: fits, 9.00 GiB to spare',
    'checkpoint  12.00 GiB, of which a host writes 7.00 GiB (2 hosts)',
    "FLOPs       3e+12 a core and step, 1.50 times the 2e+12 counted in the model's products with parameters "
    "(of this ratio attention's scores 0.25, empty slots 0.15)",
    "time        125 ms a step by the compiler's cycles (25 ms of it kernels, by their products), 25% of the "
    'peak for the products counted',
    '            and 3 ms if the links of a chip carried the collectives evenly and nothing overlapped',
    '            without 7 fusion, 2 sort: operations that the compiler has no price for',
    'compiled    in 12 s',
    'routing     encoder capacity 10 an expert and group = 1.25 slots a token, decoder drop-free',
    'collectives 32 all-to-all (2.00 GiB) a step, bytes on each core',
  ]


def test_a_device_without_figures():
  lines = describe(dataclasses.replace(PLAN, device_kind='TPU v9', estimate=None), run_of()).splitlines()
  assert 'time        cannot be told: no figures of TPU v9 are known here' in lines


def test_what_does_not_fit_names_what_would_help_most():
  """Activations are most of it, so they come first."""
  lines = describe(TOO_LARGE, run_of()).splitlines()
  assert 'does not fit, 5.00 GiB too much' in lines[4]
  knobs = [line.strip() for line in lines[lines.index('what would help most:') + 1 :]]
  assert [knob.partition(' ')[0] for knob in knobs] == [
    "config.ModelConfig.remat_policy='minimal'", 'NUM_MICROBATCHES', 'a', 'config.MeshConfig.model=2',
    'gin/layouts/fully_sharded.gin:', 'more',
  ]  # fmt: skip
  assert knobs[1:3] == ['NUM_MICROBATCHES of at most 4 (now 1)', 'a smaller BATCH_SIZE (now 32, 4 rows a shard)']


def test_weights_that_are_most_of_it_come_first():
  heavy = dataclasses.replace(TOO_LARGE, parameter_bytes_per_core=8 * GIB)
  run = run_of(MeshConfig(rules={'embed': ('data', 'expert')}), remat_policy='full')
  lines = describe(heavy, run).splitlines()
  knobs = [line.strip() for line in lines[lines.index('what would help most:') + 1 :]]
  assert knobs == [
    'config.MeshConfig.model=2 (now 1): half of every width', 'more cores (now 8)',
    'NUM_MICROBATCHES of at most 4 (now 1)', 'a smaller BATCH_SIZE (now 32, 4 rows a shard)',
  ]  # fmt: skip


def test_json_has_every_field(tmp_path):
  write_json(TOO_LARGE, str(tmp_path / 'plan.json'))
  assert json.loads((tmp_path / 'plan.json').read_text()) == dataclasses.asdict(TOO_LARGE)


def test_outputs_that_cannot_be_written(tmp_path):
  check_outputs(None, str(tmp_path / 'new.json'), None)
  with pytest.raises(ConfigError, match=r'is a folder; give a file\.'):
    check_outputs(str(tmp_path))
  with pytest.raises(ConfigError, match=r'cannot be written: .*nowhere is no folder'):
    check_outputs(None, str(tmp_path / 'nowhere' / 'x'))


@pytest.mark.parametrize('flag', ['json', 'serialize'])
def test_files_that_cannot_be_written_are_refused_first(flag, capsys):
  command = ['--run_mode=plan', '--topology=v3:2x2', '--gin_file=gin/examples/quickstart.gin']
  assert main.main([*command, f'--{flag}=/nowhere/at/all']) == 1
  assert '/nowhere/at/all cannot be written: /nowhere/at is no folder' in capsys.readouterr().err
