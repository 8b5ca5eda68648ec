"""Two processes of four emulated devices each, joined over loopback, against one process with eight."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np

from switch_jax.checkpoints.__main__ import main as verify_checkpoints
from switch_jax.folders.metric_lines import read_metrics
from switch_jax.parallel.process_group import HOST_LOST
from tests.patience import HUNG
from tests.quick_compiler import QUICK_COMPILER

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS, PERIOD = 30, 5
COMMAND = [
  *(sys.executable, '-m', 'switch_jax.main', '--gin_file=gin/examples/quickstart.gin'),
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 10}",
  *('--gin.BATCH_SIZE=8', '--gin.LOG_PERIOD=1', '--gin.EVAL_PERIOD=1000', '--gin.EVAL_STEPS=1'),
  *(f'--gin.TRAIN_STEPS={STEPS}', f'--gin.CHECKPOINT_PERIOD={PERIOD}', '--gin.config.DataConfig.num_data_shards=2'),
  *('--gin.config.MeshConfig.data=2', '--gin.config.MeshConfig.expert=4'),
  *('--gin.config.ModelConfig.emb_dim=32', '--gin.config.ModelConfig.mlp_dim=32'),
]


def start(model_dir, log, num_devices, *more):
  flags = f'--xla_force_host_platform_device_count={num_devices} {QUICK_COMPILER}'
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': flags}
  command = [*COMMAND, f'--gin.MODEL_DIR={model_dir}', *more]
  with log.open('a') as file:
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)


def start_pair(model_dir, logs):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  hosts = (f'--coordinator_address={address}', '--num_processes=2')
  return [start(model_dir, log, 4, *hosts, f'--process_id={i}') for i, log in enumerate(logs)]


def kill_once_saved(pair, logs, number, model_dir, step):
  """Kills one of the pair as soon as a checkpoint is whole; the other says so in one line and ends."""
  while not (model_dir / 'checkpoints' / str(step) / 'files.json').exists():
    assert all(process.poll() is None for process in pair)
    time.sleep(0.005)
  pair[number].send_signal(signal.SIGKILL)
  pair[number].wait()
  assert pair[1 - number].wait(HUNG) == HOST_LOST
  log = logs[1 - number].read_text()
  assert log.splitlines()[-1].startswith(f'error: process {number} (')
  if number:  # with process 0 goes JAX's coordination service, and JAX may begin to say so too
    assert log.count('rror') == 1


def test_a_pair_trains_as_one_process_and_either_may_be_killed(tmp_path):
  alone = start(tmp_path / 'alone', tmp_path / 'alone.log', 8)
  assert alone.wait(HUNG) == 0, (tmp_path / 'alone.log').read_text()
  logs = [tmp_path / 'first.log', tmp_path / 'second.log']
  for number, step in ((1, PERIOD), (0, 3 * PERIOD)):
    kill_once_saved(start_pair(tmp_path / 'pair', logs), logs, number, tmp_path / 'pair', step)
  pair = start_pair(tmp_path / 'pair', logs)
  assert [process.wait(HUNG) for process in pair] == [0, 0], logs[0].read_text()
  assert logs[0].read_text().count('continuing from the checkpoint of step') == 2
  newest = tmp_path / 'pair' / 'checkpoints' / str(STEPS)
  recorded = json.loads((newest / 'files.json').read_text())['files']
  assert all(any(name.startswith(f'state/ocdbt.process_{i}/') for name in recorded) for i in (0, 1))
  assert verify_checkpoints(['verify', str(tmp_path / 'pair')]) == 0
  lines = [read_metrics(tmp_path / name / 'train' / 'metrics.jsonl') for name in ('alone', 'pair')]
  assert [line['step'] for line in lines[1]] == list(range(1, STEPS + 1))
  expected, losses = ([line['loss'] for line in run] for run in lines)
  np.testing.assert_allclose(losses[:10], expected[:10], rtol=3e-6)
  np.testing.assert_allclose(losses, expected, rtol=1e-3)
