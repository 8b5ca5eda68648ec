"""Runs of a study as commands of their own: each made once, its output in a file, and what it measured."""

import json
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from switch_jax.folders.model_dir import ModelDir

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What `--shortened` gives every training and every evaluation on top: the whole way in few steps of a narrow model.
SHORT_STEPS = 2
_SHORT_TRAINING = (
  '--gin.BATCH_SIZE=8', '--gin.CHECKPOINT_PERIOD=1', '--gin.EVAL_PERIOD=1', '--gin.EVAL_STEPS=4', '--gin.LOG_PERIOD=1',
  '--gin.config.ModelConfig.emb_dim=16', '--gin.config.DataConfig.shuffle_buffer_size=64',
)  # fmt: skip
_SHORT_EVALUATION = ('--gin.BATCH_SIZE=8', '--gin.NUM_EXAMPLES=16')


def parse_flags(parser):
  """Adds `--shortened` to the flags of a study and returns all; shortened runs have a folder of their own."""
  parser.add_argument(
    '--shortened', action='store_true', help='the whole way in minutes: two steps, one seed; figures mean nothing'
  )
  flags = parser.parse_args()
  if flags.shortened and flags.out == parser.get_default('out'):
    flags.out = flags.out.with_name(f'{flags.out.name}_shortened')
  return flags


def training_bindings(flags):
  """Returns the bindings that come last in every training of a study."""
  return _SHORT_TRAINING if flags.shortened else ()


def evaluation_bindings(flags):
  """Returns the bindings that come last in every evaluation of a study."""
  return _SHORT_EVALUATION if flags.shortened else ()


def call(log, arguments, module='switch_jax.main'):
  """Runs `python -m module` in the repository; its output goes to the end of the file `log`. Returns the seconds."""
  began = time.monotonic()
  log = pathlib.Path(log)
  with log.open('a', encoding='utf-8') as file:
    command = [sys.executable, '-m', module, *arguments]
    status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
  if status:
    raise SystemExit(f'{log.stem}: python -m {module} ended with status {status}; see {log}')
  seconds = time.monotonic() - began
  print(f'{log.stem}: {seconds:.0f} s', flush=True)
  return seconds


def is_finished(folder, steps):
  """Whether a run has its last checkpoint and evaluation."""
  return ModelDir(folder).step(steps).is_dir() and ModelDir(folder).summary.exists()


def train(folder, arguments, steps):
  """Trains `folder` for so many steps unless that is done; returns the seconds. A run that was stopped goes on."""
  if is_finished(folder, steps):
    return 0.0
  folder.mkdir(parents=True, exist_ok=True)
  return call(f'{folder}.log', [*arguments, f'--gin.MODEL_DIR={folder}', f'--gin.TRAIN_STEPS={steps}'])


def read_config(folder, steps):
  """Returns `config.json` of a run's checkpoint."""
  return json.loads(ModelDir(folder).config(steps).read_text())


def read_predictions(folder, task, steps):
  """Returns what was predicted for every held-out example, with its inputs and targets; nothing before that."""
  path = ModelDir(folder).predictions(task, steps)
  return [json.loads(line) for line in path.read_text().split('\n') if line] if path.exists() else []
