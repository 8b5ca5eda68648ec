"""What is installed, and the two lines of the README that everything starts from."""

import ast
import importlib
import os
import pathlib
import re
import subprocess

import pytest

import switch_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
SET_UP = (
  'pip install -e . && python -m switch_jax.main --gin_file=gin/examples/quickstart.gin',
  "pip install -e '.[test]' && python -m pytest",
)


@pytest.fixture(scope='module')
def setup_arguments():
  """What setup.py hands to setuptools, without building anything."""
  import runpy

  import setuptools

  handed = {}
  original, setuptools.setup = setuptools.setup, lambda **arguments: handed.update(arguments)
  directory = os.getcwd()
  try:
    os.chdir(ROOT)
    runpy.run_path('setup.py')
  finally:
    os.chdir(directory)
    setuptools.setup = original
  return handed


def test_gin_folder_is_no_package():
  assert not list(ROOT.glob('gin/**/__init__.py'))
  assert not list(ROOT.glob('gin/**/*.py'))


def test_packages(setup_arguments):
  packages = setup_arguments['packages']
  assert {
    'switch_jax',
    'switch_jax.config',
    'switch_jax.tasks',
    'switch_jax.share.gin',
    'switch_jax.share.tasks',
  } <= set(packages)
  assert {name.split('.')[0] for name in packages} == {'switch_jax'}
  assert not any(name == 'gin' or name.startswith(('tests', 'gin.')) for name in packages)
  assert setup_arguments['package_dir'] == {'switch_jax.share.gin': 'gin', 'switch_jax.share.tasks': 'tasks'}


def test_every_folder_with_code_is_installed(setup_arguments):
  folders = {p.parent.relative_to(ROOT) for name in ('switch_jax', 'tasks') for p in (ROOT / name).glob('**/*.py')}
  names = {'.'.join(folder.parts) for folder in folders} - {'tasks'} | {'switch_jax.share.tasks'}
  assert names <= set(setup_arguments['packages'])


def test_the_console_script(setup_arguments):
  [script] = setup_arguments['entry_points']['console_scripts']
  name, _, place = script.partition(' = ')
  module, _, function = place.partition(':')
  assert name == 'switch_jax'
  assert callable(getattr(importlib.import_module(module), function))


def test_every_gin_file_is_installed(setup_arguments):
  [pattern] = setup_arguments['package_data']['switch_jax.share.gin']
  found = {p for p in (ROOT / 'gin').glob(pattern)}
  assert found == {p for p in (ROOT / 'gin').rglob('*') if p.is_file()}


def test_files_beside_the_code_are_installed(setup_arguments):
  """The parts of the report page, and the mark that the package has types."""
  found = {}
  for path in (ROOT / 'switch_jax').rglob('*'):
    if path.is_file() and path.suffix not in ('.py', '.pyc'):
      found.setdefault('.'.join(path.parent.relative_to(ROOT).parts), set()).add(path.name)
  listed = {name: set(files) for name, files in setup_arguments['package_data'].items()}
  assert listed.pop('switch_jax.share.gin')
  assert listed == found
  assert 'py.typed' in found['switch_jax']


def test_version(setup_arguments):
  assert setup_arguments['version'] == switch_jax.__version__
  assert f'[{switch_jax.__version__}]' in (ROOT / 'CHANGELOG.md').read_text()
  assert f'\nversion: {switch_jax.__version__}\n' in (ROOT / 'CITATION.cff').read_text()


def test_every_pin_has_a_reason_or_a_range(setup_arguments):
  text = (ROOT / 'setup.py').read_text()
  exact = re.findall(r"^ +'([^']+==[^']+)',(.*)$", text, re.M)
  assert exact
  assert all(comment.strip().startswith('#') for _, comment in exact)


def test_every_import_is_declared(setup_arguments):
  """A library imported by our code comes from a requirement of ours, not by luck through another's."""
  names = {'etils': 'etils', 'gin': 'gin-config', 'orbax': 'orbax-checkpoint'}
  names |= {'t5x': 'jax'}  # not on PyPI: only t5x_adapter imports it, for those who have it
  names |= {
    'rouge_score': 'rouge-score',
    'tensorflow_text': 'tensorflow-text',
    'tensorflow_datasets': 'tensorflow-datasets',
  }
  declared = {re.match(r'[\w-]+', requirement)[0] for requirement in setup_arguments['install_requires']}
  import sys

  for path in [*ROOT.glob('switch_jax/**/*.py'), *ROOT.glob('tasks/**/*.py')]:
    for node in ast.walk(ast.parse(path.read_text())):
      modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
      modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
      for root in {module.split('.')[0] for module in modules} - {'switch_jax', *sys.stdlib_module_names}:
        assert names.get(root, root) in declared, f'{path} imports {root}'


def test_readme_has_both_lines():
  lines = [line.strip().strip('`').strip() for line in (ROOT / 'README.md').read_text().splitlines()]
  for line in SET_UP:
    assert lines.count(line) == 1


def test_ci_runs_the_second_line():
  path = ROOT / '.ci' / 'run'
  assert os.access(path, os.X_OK)
  assert SET_UP[1] in path.read_text()
  subprocess.run(['bash', '-n', str(path)], check=True)


def test_the_list_for_other_versions_names_tests():
  for line in (ROOT / 'tests' / 'versions.txt').read_text().splitlines():
    path, _, name = line.partition('::')
    assert name in (ROOT / path).read_text(), line


def test_licence():
  assert 'Apache License' in (ROOT / 'LICENSE').read_text()
  assert len((ROOT / 'LICENSE').read_text()) > 11_000
