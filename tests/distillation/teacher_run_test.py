"""`--run_mode=teacher`: distributions in files, the same ones however often the writer is stopped."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorstore

from switch_jax import gin_files, main
from switch_jax.config import ConfigError, ModelConfig, MoeConfig
from switch_jax.distillation.teacher_run import write_teacher_logits
from tests.distillation.saved_teachers import save
from tests.patience import HUNG

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = ['gin/examples/quickstart.gin', 'gin/runs/distill.gin']
BINDINGS = [
  "TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 12}", 'BATCH_SIZE=8', 'MODEL_DIR=unused', 'TEACHER_DTYPE=float32',
  'TEMPERATURE=2.0', 'config.ModelConfig.emb_dim=32', 'config.ModelConfig.mlp_dim=64',
]  # fmt: skip
STEPS = 6
TEACHER = ModelConfig(
  vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1,
  moe=MoeConfig(num_experts=4, encoder_layers=1, decoder_layers=1),
)  # fmt: skip


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
  return [*BINDINGS, f'TEACHER_PATH={save(tmp_path_factory.mktemp("teacher"), TEACHER)}']


def run_of(recipe, *more, steps=STEPS):
  return gin_files.load_run(FILES, [*recipe, *more, f'TRAIN_STEPS={steps}'])[0]


@pytest.fixture(scope='module')
def logits(recipe, tmp_path_factory):
  folder = tmp_path_factory.mktemp('files') / 'logits'
  assert write_teacher_logits(run_of(recipe, f'TEACHER_LOGITS={folder}')) == 0
  return folder


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_all_that_is_there_is_left_alone(recipe, logits, capsys):
  before = contents(logits)
  assert write_teacher_logits(run_of(recipe, f'TEACHER_LOGITS={logits}')) == 0
  assert f'{logits} has the logits of all {STEPS} batches; nothing to do.' in capsys.readouterr().err
  assert contents(logits) == before
  record = json.loads((logits / 'teacher_logits.json').read_text())
  assert (record['batches'], record['temperature'], record['top_k'], record['vocab_size']) == (STEPS, 2.0, 384, 384)
  assert record['teacher']['step'] == 7


def test_a_teacher_and_a_folder_are_needed(recipe, tmp_path):
  for run in (gin_files.load_run(FILES[:1], BINDINGS[:3])[0], run_of(recipe)):
    with pytest.raises(ConfigError, match=r'--run_mode=teacher writes the logits of a teacher: add .*TEACHER_LOGITS='):
      write_teacher_logits(run)
  with pytest.raises(ConfigError, match=r'has 384 rows .* student is 400'):
    write_teacher_logits(run_of(recipe, f'TEACHER_LOGITS={tmp_path}/x', 'config.ModelConfig.vocab_size=400'))
  assert not (tmp_path / 'x').exists()


def test_a_killed_writer_goes_on(recipe, logits, tmp_path):
  """Killed at any moment, the same command ends with the same files."""
  folder = tmp_path / 'logits'
  arguments = ['--run_mode=teacher', *(f'--gin_file={file}' for file in FILES)]
  arguments += [f'--gin.{binding}' for binding in (*recipe, f'TEACHER_LOGITS={folder}')]
  process = subprocess.Popen(
    [sys.executable, '-m', 'switch_jax.main', *arguments, '--gin.TRAIN_STEPS=5000'], cwd=ROOT, stderr=subprocess.DEVNULL
  )
  began = time.monotonic()
  while not (folder / 'teacher_logits.json').exists() and time.monotonic() < began + HUNG:
    assert process.poll() is None
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  record = json.loads((folder / 'teacher_logits.json').read_text())
  assert record['batches'] >= 128
  enough = record['batches'] + 20
  assert main.main([*arguments, f'--gin.TRAIN_STEPS={enough}']) == 0
  assert json.loads((folder / 'teacher_logits.json').read_text())['batches'] == enough
  assert [path.name for path in folder.glob('position_*')] == [f'position_{enough}']
  whole, first = (
    tensorstore.open({'driver': 'zarr', 'kvstore': f'file://{place}/teacher_log_probabilities'}).result()
    for place in (folder, logits)
  )
  assert whole.shape[0] >= enough
  np.testing.assert_array_equal(whole[:STEPS].read().result(), first[:STEPS].read().result())
  sums = np.exp(whole[enough - 1].read().result()).sum(axis=-1)
  np.testing.assert_allclose(sums, 1.0, atol=1e-4)
