"""The quickstart's own configuration, shrunk, through the command line, on eight emulated devices."""

import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from switch_jax import main
from switch_jax.checkpoints import CheckpointStore
from switch_jax.checkpoints.__main__ import main as checkpoints_command
from switch_jax.folders import claim
from switch_jax.folders.metric_lines import read_metrics
from switch_jax.tasks import train_vocabulary
from tests.patience import HUNG

ROOT = pathlib.Path(__file__).resolve().parent.parent
TASK = 'docstrings_span_corruption'
SHRUNK = [
  '--gin_file=gin/examples/quickstart.gin',
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 16}",
  '--gin.BATCH_SIZE=8',
  '--gin.LOG_PERIOD=1',
  '--gin.CHECKPOINT_PERIOD=3',
  '--gin.EVAL_PERIOD=4',
  '--gin.EVAL_STEPS=1',
  '--gin.config.ModelConfig.emb_dim=32',
  '--gin.config.ModelConfig.mlp_dim=64',
]
STEPS = 8


def run(folder, steps=STEPS, *more):
  return main.main([*SHRUNK, f'--gin.MODEL_DIR={folder}', f'--gin.TRAIN_STEPS={steps}', *more])


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('finished')
  assert run(folder) == 0
  return folder


def test_parameters_of_another_vocabulary_are_refused(finished, tmp_path, monkeypatch, capsys):
  words = [''.join(letters) for letters in itertools.product('abc', repeat=4)]
  monkeypatch.setattr(train_vocabulary, 'MIN_SIZE', 0)  # the model has room for few pieces
  model = tmp_path / 'other.model'
  model.write_bytes(train_vocabulary.train([' '.join(words[i : i + 9]) for i in range(70)], 270))
  assert run(tmp_path / 'run', 2, f'--gin.INITIAL_CHECKPOINT_PATH={finished}', f'--gin.VOCABULARY={model}') == 1
  assert f'was trained with the vocabulary bytes of 359 ids, and {TASK} has {model} of 370' in capsys.readouterr().err


def snapshot(folder):
  return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


def test_a_run_leaves_what_it_promises(finished):
  train = read_metrics(finished / 'train' / 'metrics.jsonl')
  assert [line['step'] for line in train] == list(range(1, STEPS + 1))
  assert train[-1]['loss'] < train[0]['loss']
  for name in ('cross_ent_loss', 'accuracy', 'z_loss', 'load_balance_loss', 'router_z_loss', 'fraction_dropped',
               'router_entropy', 'expert_load_max_over_mean', 'experts_unused', 'learning_rate', 'grad_norm',
               'fraction_dropped/encoder_1', 'load_balance_loss/decoder_1'):  # fmt: skip
    assert np.isfinite(train[-1][name]), name
  assert {'steps_per_second', 'target_tokens_per_second', 'input_wait_fraction'} <= set(train[-1])
  held_out = read_metrics(finished / 'eval' / TASK / 'metrics.jsonl')
  assert [line['step'] for line in held_out] == [0, 4, 8]
  assert held_out[-1]['cross_ent_loss_text'] < held_out[0]['cross_ent_loss_text']
  assert (finished / 'config.gin').read_text().count('ModelConfig')
  assert (finished / 'summary.png').read_bytes().startswith(b'\x89PNG')
  assert list((finished / 'train').glob('events.out.tfevents.*'))
  loads = read_metrics(finished / 'train' / 'expert_tokens.jsonl')
  assert [(line['step'], len(line['encoder_1']), len(line['decoder_1'])) for line in loads] == [(1, 8, 8), (8, 8, 8)]
  config = json.loads((finished / 'checkpoints' / str(STEPS) / 'config.json').read_text())
  assert config['model']['moe']['num_experts'] == 8
  assert config['vocabulary']['size'] == 359


def test_a_finished_run_says_so_and_changes_nothing(finished, capsys):
  before = snapshot(finished)
  assert run(finished) == 0
  assert 'nothing to do' in capsys.readouterr().out
  assert snapshot(finished) == before


def test_a_stopped_run_continues_bit_for_bit(finished, tmp_path):
  assert run(tmp_path, 5) == 0
  assert run(tmp_path, STEPS) == 0
  losses = [[line['loss'] for line in read_metrics(d / 'train' / 'metrics.jsonl')] for d in (finished, tmp_path)]
  assert losses[0] == losses[1]
  held_out = [read_metrics(d / 'eval' / TASK / 'metrics.jsonl')[-1] for d in (finished, tmp_path)]
  assert held_out[0] == held_out[1]


def test_a_killed_run_gives_every_bit_of_the_one_left_alone(finished, tmp_path, capsys):
  """SIGKILL in another process, after a checkpoint; `benchmarks/kill_test.py` does it ten times.

  While it lives nobody else gets in; once it is dead its folder is free.
  """
  arguments = [*SHRUNK, f'--gin.MODEL_DIR={tmp_path}', '--gin.TRAIN_STEPS=1000']
  process = subprocess.Popen([sys.executable, '-m', 'switch_jax.main', *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
  began = time.monotonic()
  while not (tmp_path / 'checkpoints' / '3').is_dir() and time.monotonic() < began + HUNG:
    assert process.poll() is None
    time.sleep(0.01)
  assert run(tmp_path, 1000) == 1
  error = capsys.readouterr().err
  assert f'MODEL_DIR {tmp_path} belongs to process {process.pid} on host ' in error
  assert 'Traceback' not in error
  assert process.poll() is None
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  # What a save that was under way leaves behind, and lines past the checkpoint.
  newest = max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdecimal())
  for path in (tmp_path / 'checkpoints').iterdir():
    if path.name.isdecimal() and int(path.name) > 6:
      shutil.rmtree(path)
  assert newest >= 3
  assert run(tmp_path) == 0
  assert 'watching' not in capsys.readouterr().err
  assert not list(tmp_path.glob('owner.json*'))
  for name in ('train', f'eval/{TASK}'):
    alone, killed = (read_metrics(folder / name / 'metrics.jsonl') for folder in (finished, tmp_path))
    assert [line['step'] for line in killed] == [line['step'] for line in alone]
    for key in ('loss', 'cross_ent_loss', 'grad_norm', 'accuracy'):
      assert [line.get(key) for line in killed] == [line.get(key) for line in alone]
  loads = [(folder / 'train' / 'expert_tokens.jsonl').read_text() for folder in (finished, tmp_path)]
  assert loads[0] == loads[1]


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_the_curve_is_the_same(finished, tmp_path, caplog):
  shutil.copytree(finished, tmp_path / 'run')
  newest = tmp_path / 'run' / 'checkpoints' / str(STEPS)
  file = max((path for path in newest.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)
  assert run(tmp_path / 'run') == 0
  said = f'The checkpoint of step {STEPS} is damaged ({file.relative_to(newest)} has other bytes than were written'
  assert said in caplog.text
  assert 'going on from step 6.' in caplog.text
  alone, damaged = (read_metrics(folder / 'train' / 'metrics.jsonl') for folder in (finished, tmp_path / 'run'))
  assert [(line['step'], line['loss']) for line in damaged] == [(line['step'], line['loss']) for line in alone]
  assert checkpoints_command(['verify', str(newest)]) == 0


def test_another_mesh_continues_with_the_same_losses_to_rounding(tmp_path):
  groups = '--gin.SEQUENCES_PER_GROUP=1'
  assert run(tmp_path / 'a', 3, groups) == 0
  shutil.copytree(tmp_path / 'a', tmp_path / 'b')
  assert run(tmp_path / 'a', 5, groups) == 0
  assert run(tmp_path / 'b', 5, groups, '--gin.config.MeshConfig.expert=2', '--gin.config.MeshConfig.model=2') == 0
  a, b = ([line['loss'] for line in read_metrics(tmp_path / d / 'train' / 'metrics.jsonl')] for d in 'ab')
  assert a[:3] == b[:3]
  np.testing.assert_allclose(a[3:], b[3:], rtol=2e-5)


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_last_good_checkpoint(finished, tmp_path, capsys):
  broken = ['--gin.LEARNING_RATE=1e20', '--gin.config.OptimizerConfig.multiply_by_parameter_scale=False']
  start = f'--gin.INITIAL_CHECKPOINT_PATH={finished}'
  assert run(tmp_path, STEPS, start, *broken) == 1
  progress, _, error = capsys.readouterr().err.partition('error: ')
  assert error.startswith('the loss of step ')
  assert 'No checkpoint was saved before it.' in error
  assert error.count('\n') == 1
  assert 'Traceback' not in progress
  assert not list((tmp_path / 'checkpoints').glob('*/config.json'))
  before = snapshot(tmp_path)
  assert run(tmp_path) == 1  # with the settings of before it would begin anew; these are others
  error = capsys.readouterr().err
  assert 'optimizer.learning_rate                1e+20 of the run that was begun there, 1.0 now' in error
  assert f'or remove {tmp_path / "run.json"} to start anew in this one.' in error
  assert snapshot(tmp_path) == before


def test_a_folder_that_vanishes_is_one_error(finished, tmp_path, capsys, monkeypatch):
  folder = tmp_path / 'run'
  shutil.copytree(finished, folder)
  save = CheckpointStore.save

  def vanish(self, step, *rest):
    shutil.rmtree(folder)
    folder.write_text('')  # and cannot be made again
    save(self, step, *rest)

  monkeypatch.setattr(CheckpointStore, 'save', vanish)
  assert run(folder, STEPS + 4) == 1
  progress, _, error = capsys.readouterr().err.partition('error: ')
  assert str(folder) in error
  assert 'Traceback' not in progress + error


def test_an_owner_that_lost_its_folder_ends_before_it_writes_there_again(finished, tmp_path, capsys, monkeypatch):
  folder = tmp_path / 'run'
  shutil.copytree(finished, folder)
  save, now = CheckpointStore.save, claim.boot_seconds

  def lose(self, step, *rest):
    save(self, step, *rest)
    (folder / 'owner.json').write_text('of another')
    monkeypatch.setattr(claim, 'boot_seconds', lambda: now() + 1000)  # this process was stopped for long

  monkeypatch.setattr(CheckpointStore, 'save', lose)
  assert run(folder, STEPS + 7) == 1
  error = capsys.readouterr().err.partition('error: ')[2]
  assert error.startswith(f'MODEL_DIR {folder} no longer belongs to this process: an unknown process has taken it over')
  assert error.count('\n') == 1
  assert [line['step'] for line in read_metrics(folder / 'train' / 'metrics.jsonl')][-1] == STEPS + 1
  assert CheckpointStore(folder).latest_step() == STEPS + 1
  assert (folder / 'owner.json').read_text() == 'of another'


def test_a_folder_of_another_run_is_refused_and_left_alone(finished, capsys):
  before = snapshot(finished)
  assert run(finished, STEPS + 1, '--gin.NUM_EXPERTS=16') == 1
  error = capsys.readouterr().err
  assert 'model.moe.num_experts' in error
  assert 'Traceback' not in error
  assert snapshot(finished) == before


def test_dry_run_describes_and_writes_nothing(tmp_path, capsys):
  assert run(tmp_path / 'new', STEPS, '--dry_run') == 0
  text = capsys.readouterr().out
  for expected in ('8 experts', 'slots a token', "('expert', None, 'model')", 'expert=8'):
    assert expected in text
  assert not (tmp_path / 'new').exists()
