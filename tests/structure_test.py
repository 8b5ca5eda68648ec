"""Every source has a test file that one finds by its name, and that uses it."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = sorted(
  path.relative_to(ROOT)
  for folder in ('switch_jax', 'tasks')
  for path in (ROOT / folder).glob('**/*.py')
  if path.name != '__init__.py'
)

# What stands behind one front: the modules that their tests reach them through.
THROUGH = {
  'switch_jax/data/position.py': 'switch_jax.data.pipeline',
  'switch_jax/gin_statements.py': 'tests.gin_runs',
  'switch_jax/interop/huggingface.py': 'switch_jax.interop',
  'switch_jax/interop/own_writer.py': 'tests.interop.own_checkpoints',
  'switch_jax/interop/t5x_writer.py': 'tests.interop.own_checkpoints',
}


def place_of_tests(source):
  """Returns where the tests of a source are: `switch_jax/room/name.py` has `tests/room/name_test.py`."""
  room = source.parent if source.parts[0] == 'tasks' else source.parent.relative_to('switch_jax')
  name = f'{room.name}_command' if source.stem == '__main__' else source.stem
  return pathlib.Path('tests') / room / f'{name}_test.py'


def imported(tree):
  """Returns every imported name, dotted: for `from a import b` both `a` and `a.b`."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
  return found


def uses(tree, source, own_names):
  """Whether a test imports a source or what its room offers of it, as a name or an attribute, or runs it as a command.

  Args:
    tree: syntax tree of the test.
    source: path of the source.
    own_names: what the source defines.
  """
  module = '.'.join(source.with_suffix('').parts)
  module = f'switch_jax.{module}' if source.parts[0] == 'tasks' else module
  room, _, name = module.rpartition('.')
  names, nodes = imported(tree), list(ast.walk(tree))
  attributes = {
    f'{node.value.id}.{node.attr}'
    for node in nodes
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
  }
  if module in names or any(f'{room}.{own}' in names for own in own_names):
    return True
  if room in names and any(f'{room.rpartition(".")[2]}.{own}' in attributes for own in own_names):
    return True
  command = room if name == '__main__' else module
  return any(isinstance(node, ast.Constant) and node.value == command for node in nodes)


def defined(path):
  """Returns the names of a source's functions and classes."""
  kinds = (ast.FunctionDef, ast.ClassDef)
  return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds)}


@pytest.mark.parametrize('source', SOURCES, ids=str)
def test_a_source_has_a_test_of_its_name_that_uses_it(source):
  test = place_of_tests(source)
  assert (ROOT / test).is_file(), f'{source} has no {test}'
  tree = ast.parse((ROOT / test).read_text())
  if through := THROUGH.get(str(source)):
    assert through in imported(tree), f'{test} does not import {through}, through which it would use {source}'
  else:
    assert uses(tree, source, defined(ROOT / source)), f'{test} neither imports {source} nor anything it defines'


def test_rooms_of_tests_are_packages():
  rooms = {path.parent for path in (ROOT / 'tests').glob('**/*_test.py')}
  assert not [str(room.relative_to(ROOT)) for room in rooms if not (room / '__init__.py').is_file()]


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('from switch_jax.plan.flops import model_flops', True),
    ('from switch_jax.plan import flops', True),
    ('from switch_jax.plan import model_flops', True),
    ('import switch_jax.plan.flops', True),
    ('from switch_jax import plan; plan.model_flops()', True),
    ('from switch_jax import plan; plan.describe()', False),
    ('from switch_jax.plan import describe', False),
    ('from switch_jax.plan.flopsy import model_flops', False),
    ('"switch_jax.plan.flops is not tested here"', False),
  ],
)
def test_the_check_itself(text, expected):
  assert uses(ast.parse(text), pathlib.Path('switch_jax/plan/flops.py'), {'model_flops'}) == expected


def test_the_check_of_commands():
  command = pathlib.Path('switch_jax/sweep/__main__.py')
  assert place_of_tests(command) == pathlib.Path('tests/sweep/sweep_command_test.py')
  assert place_of_tests(pathlib.Path('tasks/glue.py')) == pathlib.Path('tests/tasks/glue_test.py')
  assert place_of_tests(pathlib.Path('switch_jax/launch.py')) == pathlib.Path('tests/launch_test.py')
  assert uses(ast.parse('run(["python", "-m", "switch_jax.sweep"])'), command, set())
  assert not uses(ast.parse('from switch_jax.sweep import points'), command, set())
