"""Runs of a study as commands of their own: each made once, its output in a file, and what it measured."""

import json
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


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
  return (folder / 'checkpoints' / str(steps)).is_dir() and (folder / 'summary.png').exists()


def train(folder, arguments, steps):
  """Trains `folder` for so many steps unless that is done; returns the seconds. A run that was stopped goes on."""
  if is_finished(folder, steps):
    return 0.0
  folder.mkdir(parents=True, exist_ok=True)
  return call(f'{folder}.log', [*arguments, f'--gin.MODEL_DIR={folder}', f'--gin.TRAIN_STEPS={steps}'])


def read_lines(path):
  """Returns the records of a file of JSON lines; none if there is no file."""
  return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()] if path.exists() else []
