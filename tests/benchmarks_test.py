"""The programs of benchmarks/ and studies/: run to tables and pictures, each says what it is, no name hides another."""

import argparse
import ast
import importlib
import os
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

from studies import records
from studies.paper import STUDIES as PAPER
from switch_jax import launch
from tests.quick_compiler import QUICK_COMPILER
from tests.shortened_studies import SOME

ROOT = pathlib.Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / 'benchmarks'
SCRIPTS = sorted(
  str(path.relative_to(BENCHMARKS))
  for path in BENCHMARKS.glob('*.py')
  if path.name not in ('runs.py', 'places.py')  # what programs share
)
# `python -m tests.shortened_studies OUT multilingual_finetune` has the one that takes longest.
STUDIES = ('studies', 'finetune_demo', 'span_corruption')
# One device, and programs of two steps that are compiled soon and run slowly.
FAST = f'--xla_cpu_multi_thread_eigen=false {QUICK_COMPILER}'


@pytest.fixture(scope='module')
def studies(tmp_path_factory):
  """Runs all of them in one process, with caches of its own; returns its folder."""
  out = tmp_path_factory.mktemp('studies')
  environment = {**os.environ, 'XLA_FLAGS': FAST, 'SWITCH_JAX_CACHE': str(out / 'cache')}
  command = [sys.executable, '-m', 'tests.shortened_studies', str(out), *STUDIES]
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
  print(done.stdout)
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
  return out


def picture(path):
  return path.read_bytes()[:4] == b'\x89PNG' and path.stat().st_size > 5000


def numbers(row):
  """Returns what a row of a table has in its cells after the first."""
  return [cell.strip() for cell in row.strip('| \n').split('|')[1:]]


@pytest.mark.parametrize('name', [name for name in SOME if PAPER[name].claims])
def test_a_study_of_the_paper(studies, name):
  text = (studies / 'studies.txt').read_text()
  (title,) = re.findall(rf'\| \*\*(.+)\*\* \| \| `python -m studies {name}`', text)
  claims = text.rpartition(f'| **{title}**')[2].partition('| **')[0].partition('\n\n')[0].splitlines()[1:]
  assert claims
  for claim in claims:
    assert 'not run here' not in claim
    assert claim.rstrip(' |').endswith('cannot tell')  # one seed never can
  assert picture(studies / 'studies' / f'{name}.png')
  points = text.rpartition(f'\n\n**{title}**\n\n')[2].partition('\n\n')[0].splitlines()[2:]
  with (studies / 'studies' / name / 'summary.csv').open() as file:
    assert len(points) == len(file.readlines()) - 1
  for point in points:
    assert re.fullmatch(r'\d\.\d{4} \(1 seed\)', numbers(point)[2]), point


def test_the_choice_of_learning_rates(studies):
  text = (studies / 'studies.txt').read_text()
  rows = re.findall(r'^\| [\w ]+ \| \*\*\d\.\d{4}\*\* \|$', text, re.M)
  assert len(rows) == 2  # models


def test_the_demo_of_fine_tuning(studies):
  text = (studies / 'finetune_demo.txt').read_text()
  assert len(re.findall(r'^  [ \d]{3}\.\d   (?:pre-trained, then|from scratch|always)', text, re.M)) == 3
  assert re.search(r'^  [ \d]{3}\.\d [ \d]{3}\.\d [ \d]{3}\.\d   pre-trained', text, re.M)
  assert text.count('    description: ') == text.count('    topic: ') == 3


def test_the_study_of_many_languages(studies):
  found = records.load('multilingual', studies / 'studies' / 'results')
  assert len(found.runs['dense'][0].groups) >= 6
  assert found.runs['dense'][0].groups.keys() == found.runs['mswitch'][0].groups.keys()


def test_the_comparison_of_span_corruption(studies):
  text = (studies / 'span_corruption.txt').read_text()
  assert 'rows, their lengths and their spans are as many: True' in text
  assert text.count('inputs and targets together are the text: True') == 2
  assert text.count('p = 1.00') == 2


@pytest.mark.parametrize('script', SCRIPTS)
def test_a_program_says_what_it_is(script, monkeypatch, capsys):
  if script.startswith('huggingface_'):
    pytest.importorskip('torch', reason='the program of the other environment')
  monkeypatch.setattr(os, 'environ', os.environ.copy())
  for name in ('restart_with_huge_pages', 'keep_freed_memory'):  # what is for a whole process
    monkeypatch.setattr(launch, name, lambda: None)
  monkeypatch.setattr(sys, 'argv', [script, '--help'])
  monkeypatch.setattr(sys, 'path', [str(BENCHMARKS), str(ROOT), *sys.path])
  before = set(sys.modules)
  with pytest.raises(SystemExit) as end:
    runpy.run_path(str(BENCHMARKS / script), run_name='__main__')
  for name in set(sys.modules) - before:  # another program has a module of the same name
    if str(getattr(sys.modules[name], '__file__', '')).startswith(str(BENCHMARKS)):
      del sys.modules[name]
  assert not end.value.code
  assert 'usage: ' in capsys.readouterr().out


def test_shortened_runs_lie_beside_the_real_ones(monkeypatch):
  monkeypatch.setattr(sys, 'path', [str(BENCHMARKS), *sys.path])
  runs = importlib.import_module('runs')
  for given, place in (([], 'x_shortened'), (['--out=y'], 'y')):
    monkeypatch.setattr(sys, 'argv', ['study', '--shortened', *given])
    parser = argparse.ArgumentParser()
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('x'))
    assert runs.parse_flags(parser).out == pathlib.Path(place)
  del sys.modules['runs']


def hidden(tree):
  """Yields the functions that bind a name under which their file imports something, and the name."""
  imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
  names = {alias.asname or alias.name.partition('.')[0] for node in imports for alias in node.names}
  for function in ast.walk(tree):
    if isinstance(function, ast.FunctionDef):
      bound = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
      bound |= {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
      yield from ((function.name, name) for name in bound & names)


def test_no_name_hides_what_a_file_imports():
  assert set(hidden(ast.parse('import runs\ndef f():\n  runs = {}\n  for x in runs: pass\n'))) == {('f', 'runs')}
  files = [path for folder in ('benchmarks', 'studies', 'tasks', 'tests') for path in (ROOT / folder).glob('**/*.py')]
  assert not [(path.name, *found) for path in files for found in hidden(ast.parse(path.read_text()))]


def missing(tree):
  """Yields what a file takes from our modules, anywhere in it, and is not there."""
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module.partition('.')[0] in OURS:
      for alias in node.names:
        if not hasattr(importlib.import_module(node.module), alias.name):
          try:
            importlib.import_module(f'{node.module}.{alias.name}')
          except ImportError:
            yield f'{node.module}.{alias.name}'
  names = {
    alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names if alias.name in OURS
  }
  for node in ast.walk(tree):
    if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names):
      continue
    if not hasattr(importlib.import_module(node.value.id), node.attr):
      yield f'{node.value.id}.{node.attr}'


OURS = ('switch_jax', 'tasks', 'tests', 'studies', 'runs')


def test_what_programs_import_anywhere_is_there(monkeypatch):
  monkeypatch.setattr(sys, 'path', [str(BENCHMARKS), str(ROOT), *sys.path])
  assert list(missing(ast.parse('import runs\nfrom switch_jax import nothing\ndef f(): runs.nothing()'))) == [
    'switch_jax.nothing', 'runs.nothing',
  ]  # fmt: skip
  found = {
    path.name: list(missing(ast.parse(path.read_text())))
    for folder in (BENCHMARKS, ROOT / 'studies')
    for path in folder.glob('**/*.py')
  }
  for name in OURS[4:]:
    sys.modules.pop(name, None)
  assert not {name: names for name, names in found.items() if names}


def test_the_walk_runs_what_the_page_prints(monkeypatch):
  monkeypatch.setattr(sys, 'path', [str(BENCHMARKS), *sys.path])
  walk = importlib.import_module('labelled_walk')
  commands = walk.printed_commands('your_labels.md')
  asked = (
    'my_task_text.gin',
    'INITIAL_CHECKPOINT_PATH=runs/my_task_text',
    'mode=eval',
    'mode=infer',
    'huggingface:exported',
  )
  assert all(word in command for word, command in zip(asked, commands, strict=True))
  assert walk.printed_commands('your_text.md')[0].endswith("TEXT_FILES='/some/dir/*.txt'")
  # Nothing but the words tells the classes apart.
  assert len({str(sorted(map(len, words))) for words in walk.WORDS.values()}) == 1
  texts = walk.make_texts(0, 60)
  assert [[label for _, label in texts].count(label) for label in walk.WORDS] == [20] * 3
  for name in ('runs', 'labelled_walk'):
    del sys.modules[name]
