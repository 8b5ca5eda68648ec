"""Imports go one way, and each third-party library has its room. Read from the syntax trees, so lazy imports count."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Lower ones know nothing of higher ones. Modules of one line do not know each other either.
LEVELS = (
  ('config',),
  ('folders',),
  ('parallel',),
  ('kernels',),
  ('model',),
  ('data',),
  ('checkpoints',),
  ('interop', 'monitoring'),
  ('inference',),
  ('distillation',),
  ('training',),
  ('plan', 'report', 'sweep', 't5x_adapter'),
  ('tasks', 'gin_t5x', 'gin_statements', 'gin_files', 'launch', 'main', 'convert', 'command'),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# The entry points and what they are made of may use each other.
TOP = LEVELS[-1]

# Which files may import a library: the beginnings of their paths.
FENCES = {
  'gin': ('switch_jax/main.py', 'switch_jax/gin_', 'switch_jax/sweep', 'switch_jax/convert'),
  'tensorflow': ('switch_jax/data/', 'switch_jax/inference/evaluat', 'tasks/'),
  'tensorflow_text': ('switch_jax/data/', 'switch_jax/inference/evaluat', 'tasks/'),
  'tensorflow_datasets': ('switch_jax/data/', 'switch_jax/inference/evaluat', 'tasks/'),
  'seqio': ('switch_jax/data/', 'switch_jax/inference/evaluat', 'tasks/'),
  'flax': ('switch_jax/model/', 'switch_jax/t5x_adapter.py'),
  'orbax': ('switch_jax/checkpoints',),
}
DEVICES = ('switch_jax/main.py', 'switch_jax/launch.py', 'switch_jax/plan', 'switch_jax/parallel/')
DEVICE_CALLS = {'devices', 'local_devices', 'device_count', 'local_device_count'}


def imported(tree, path):
  """Yields every imported name, dotted and absolute: for `from a import b` both `a` and `a.b`."""
  package = path.relative_to(ROOT).with_suffix('').parts[:-1]
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = '.'.join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
      base = base if node.level else node.module
      yield base
      yield from (f'{base}.{alias.name}' for alias in node.names)


def files():
  found = sorted(p for folder in ('switch_jax', 'tasks') for p in (ROOT / folder).glob('**/*.py'))
  return [pytest.param(p, id=str(p.relative_to(ROOT))) for p in found]


@pytest.mark.parametrize('path', files())
def test_direction(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  names = set(imported(ast.parse(path.read_text()), path))
  others = {name.split('.')[1] for name in names if name.startswith('switch_jax.')} - {'__version__'}
  unknown = {other for other in others if other not in LEVEL}
  assert not unknown, f'add {unknown} to LEVELS'
  if parts[0] == 'tasks':
    assert others <= {'config', 'folders', 'data', 'tasks'}
    return
  assert 'tasks' not in others, 'tasks are imported by name, from the configuration'
  if parts[1] == '__init__':
    assert not others, 'importing the package imports none of its parts'
    return
  mine = 'main' if parts[-1] == '__main__' else parts[1]  # `python -m switch_jax.report` is an entry point
  allowed = {n for n, level in LEVEL.items() if level < LEVEL[mine]} | {mine} | (set(TOP) if mine in TOP else set())
  assert others <= allowed


@pytest.mark.parametrize('path', files())
def test_fences(path):
  tree, place = ast.parse(path.read_text()), path.relative_to(ROOT).as_posix()
  roots = {name.split('.')[0] for name in imported(tree, path)}
  outside = {library for library, homes in FENCES.items() if library in roots and not place.startswith(homes)}
  assert not outside
  if not place.startswith(DEVICES):
    calls = [
      node.lineno
      for node in ast.walk(tree)
      if isinstance(node, ast.Attribute)
      and node.attr in DEVICE_CALLS
      and isinstance(node.value, ast.Name)
      and node.value.id == 'jax'
    ]
    assert not calls, 'the machine is asked for its devices in main, plan and parallel only'


def test_nothing_of_ours_imports_what_a_working_directory_may_hide():
  for folder in ('switch_jax', 'tasks', 'tests', 'benchmarks'):
    for path in (ROOT / folder).glob('**/*.py'):
      roots = {name.split('.')[0] for name in imported(ast.parse(path.read_text()), path)}
      assert 'tasks' not in roots, f'{path} imports tasks; it is switch_jax.tasks'


def test_config_imports_only_the_standard_library():
  import sys

  for path in (ROOT / 'switch_jax' / 'config').glob('*.py'):
    roots = {name.split('.')[0] for name in imported(ast.parse(path.read_text()), path)}
    assert roots <= {*sys.stdlib_module_names, 'switch_jax'}


def test_the_check_itself():
  """A wrong import is seen, wherever it stands."""
  path = ROOT / 'switch_jax' / 'model' / 'x.py'
  names = set(
    imported(ast.parse('def f():\n  from switch_jax import training\n  from . import y\n  import gin.config'), path)
  )
  assert {'switch_jax.training', 'switch_jax.model.y', 'gin.config'} <= names
