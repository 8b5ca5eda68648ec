"""Runs read from gin files, for the tests of the front end."""

import pathlib

from switch_jax import gin_files, gin_statements

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICKSTART = 'gin/examples/quickstart.gin'
PRETRAIN = (
  'MODEL_DIR=/some/dir',
  'TRAIN_STEPS=10',
  'MIXTURE_OR_TASK_NAME=a_task',
  "TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 114}",
)


def load(*names, bindings=(), search_paths=()):
  return gin_files.load_run(names, bindings, search_paths)[0]


def quickstart(*bindings):
  return load(QUICKSTART, bindings=bindings)


def write(name, *lines, header=True):
  path = pathlib.Path(name)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text((gin_statements.HEADER if header else '') + '\n'.join(lines) + '\n')
  return name
