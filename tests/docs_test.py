"""README and docs/: commands are read by the parsers that would read them, code runs, links lead somewhere."""

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import pathlib
import re
import shlex
import threading

import pytest
import yaml

from switch_jax import command, convert, gin_files, main
from switch_jax.config import EvaluationConfig, PredictionConfig, RunConfig, SweepConfig
from switch_jax.report import __main__ as report
from switch_jax.sweep import __main__ as sweep
from switch_jax.sweep.points import make_points

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / 'docs'
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'deploy' / 'README.md', *sorted(DOCS.glob('*.md'))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding='utf-8') for path in PAGES}
# Where `...` stands in a command, in place of what the reader has.
PLACEHOLDERS = {
  'MODEL_DIR': '/d',
  'MIXTURE_OR_TASK_NAME': 'a_task',
  'TRAIN_STEPS': 10,
  'TASK_FEATURE_LENGTHS': {'inputs': 512, 'targets': 114},
}
ROOTS = {'eval': EvaluationConfig, 'infer': PredictionConfig}
# Programs of others; what they are given of ours is looked at.
OTHERS = {
  'bash', 'docker', 'gcloud', 'kubectl', 'mkdocs', 'pip', 'pre-commit', 'pydoc', 'sbatch', 'seqio_cache_tasks',
  'tensorboard',
}  # fmt: skip


@pytest.fixture(scope='module')
def pages():
  """The hook of MkDocs."""
  spec = importlib.util.spec_from_file_location('pages', DOCS / 'site' / 'pages.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def blocks(text, language):
  return re.findall(rf'^ *```{language}\n(.*?)^ *```', text, re.S | re.M)


def split(text):
  """Yields the simple commands of a piece of shell, those inside --command="..." too, as lists of words."""
  lexer = shlex.shlex(text.replace('\\\n', ' ').replace('\n', ' ;\n'), posix=True, punctuation_chars=';&|')
  lexer.whitespace_split = True
  words = []
  for word in [*lexer, ';']:
    if word.startswith('--command='):
      yield from split(word.removeprefix('--command='))
    elif word not in (';', '&&', '||', '|'):
      words.append(word)
    elif words:
      yield words
      words = []


def commands():
  for name, text in TEXTS.items():
    for block in blocks(text, 'sh'):
      for number, words in enumerate(split(block)):
        yield pytest.param(words, name, id=f'{name}: {number} {" ".join(words)[:60]}')


def check_main(arguments):
  unfinished = '...' in arguments
  arguments = [word for word in arguments if word != '...']
  if unfinished and not any(word.startswith('--gin_file') for word in arguments):
    arguments.append('--gin_file=gin/examples/quickstart.gin')
  flags, bindings = main.parse_flags(arguments)
  root = ROOTS.get(flags.run_mode, RunConfig)
  placeholders = PLACEHOLDERS if unfinished else main._NOT_PLANNED if flags.run_mode == 'plan' else None
  assert isinstance(gin_files.load_run(flags.gin_file, bindings, (), placeholders, root)[0], root)


def check_sweep(arguments, folder):
  """Makes the commands of a sweep, that of docs/sweeps.md for the file that it is called there."""
  [text] = [block for block in blocks(TEXTS['docs/sweeps.md'], 'python') if 'SweepConfig.grid' in block]
  (folder / 'my_sweep.gin').write_text(text, encoding='utf-8')
  flags, bindings = sweep.parse_flags([word for word in arguments if word not in ('>', 'commands.txt')])
  run, _ = gin_files.load_run([str(folder / flags.sweep)], root=SweepConfig)
  assert len(sweep.make_commands(make_points(run), flags, bindings)) == 12


def check_script(path, flags):
  """A script of benchmarks/ or tasks/ is there and knows the flags."""
  sources = [path] if path.is_file() else list(path.glob('*.py'))
  assert sources, path
  known = ''.join(source.read_text() for source in [*sources, *(ROOT / 'benchmarks').glob('runs.py')])
  for flag in flags:
    assert f"'{flag.partition('=')[0]}'" in known, f'{path} does not know {flag}'


@pytest.mark.parametrize(('words', 'name'), list(commands()))
def test_command(words, name, tmp_path):
  while re.match(r'[A-Z_]+=', words[0]):
    words = words[1:]
  program, *rest = words
  if program == 'eval':
    [program, *rest] = re.fullmatch(r'\$\((.*)\)', rest[0])[1].split()
  if program == 'switch_jax':
    command._check(rest)
    if rest[0] == 'completion':
      return
    own = command.COMMANDS[rest[0]]
    program, rest = 'python', ['-m', own.module.removesuffix('.__main__'), *own.arguments, *rest[1:]]
  if program == 'python' and rest[0] == '-m':
    module, arguments = rest[1], rest[2:]
    if module == 'switch_jax.main':
      check_main(arguments)
    elif module == 'switch_jax.convert':
      flags, bindings = convert._parse(arguments)
      assert convert.split_place(flags.source, '--from')
      assert convert.split_place(flags.target, '--to')
      convert.read_overrides(flags.gin_file, bindings)
    elif module == 'switch_jax.sweep':
      check_sweep(arguments, tmp_path)
    elif module == 'switch_jax.report':
      assert report.make_parser().parse_args(arguments).model_dirs
    elif module == 'switch_jax.checkpoints':
      assert arguments[0] == 'verify'
    elif module.startswith('switch_jax.tasks.'):
      check_script(
        ROOT / 'tasks' / f'{module.rpartition(".")[2]}.py', [word for word in arguments if word.startswith('--')]
      )
    else:
      assert module in ('pytest', 'mkdocs'), module
  elif program == 'python' and rest[0] == '-c':
    compile(rest[1], name, 'exec')
  elif program == 'python':
    check_script(ROOT / rest[0], [word for word in rest if word.startswith('--')])
  elif program not in ('cd', 'export', '.ci/run'):
    assert program in OTHERS, f'{program} is checked by nothing'
    extras = re.search(r'\.\[([\w,]+)\]', ' '.join(rest))
    known = (ROOT / 'setup.py').read_text()
    assert all(f"'{extra}': [" in known for extra in (extras[1].split(',') if extras else ()))
  for word in words:
    assert not re.match(r'(deploy|tests|gin|benchmarks)/', word) or (ROOT / word).exists(), word


def test_names_of_files_and_scripts_in_the_text():
  for name, text in TEXTS.items():
    for path in re.findall(r'`((?:switch_jax|tasks|tests|gin|benchmarks|deploy|docs)/[\w./]+)`', text):
      assert (ROOT / path).exists(), f'{name} names {path}'
    for script in re.findall(r'`python (benchmarks/[^`]+)`', text):
      path, *words = script.split()
      check_script(ROOT / path, [word for word in words if word.startswith('--')])


def test_training_from_python(tmp_path, monkeypatch, capsys):
  text = TEXTS['docs/python.md']
  (code,) = (block for block in blocks(text, 'python') if 'training.train(run)' in block)
  monkeypatch.chdir(tmp_path)
  before = set(threading.enumerate())
  exec(compile(code, 'docs/python.md', 'exec'), {})
  assert set(threading.enumerate()) == before
  said, shape, _ = capsys.readouterr().out.splitlines()
  reason, step, loss, held_out = said.split()
  assert (reason, step) == ('finished', '20')
  assert 0 < float(held_out) < 7  # 8.2 before training
  assert float(loss) < 7
  assert shape == '(4, 64, 128)'
  assert (tmp_path / 'runs' / 'notebook' / 'checkpoints' / '20').is_dir()


def test_what_code_imports_is_there():
  for name, text in TEXTS.items():
    for block in blocks(text, 'python'):
      for node in ast.walk(ast.parse(block, name)):
        # transformers need not be installed.
        if isinstance(node, ast.ImportFrom) and node.module not in ('__gin__', 'transformers'):
          module = importlib.import_module(node.module)
          for alias in node.names:
            assert hasattr(module, alias.name) or importlib.import_module(f'{node.module}.{alias.name}')


def anchors(text):
  """Returns the anchors of a page, as Python-Markdown makes them of headings."""
  headings = re.findall(r'^#+ (.+)$', re.sub(r'```.*?```', '', text, flags=re.S), re.M)
  return {re.sub(r'[-\s]+', '-', re.sub(r'[^\w\s-]', '', heading).strip().lower()) for heading in headings}


def test_links(pages):
  made = {f'docs/{path}': text for path, (_, text) in pages.design_pages().items()}
  made |= {'docs/gin_fields.md': pages.field_page()}
  for name, text in TEXTS.items():
    for path, anchor in re.findall(r'\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)', text):
      target = (ROOT / name).parent / path if path else ROOT / name
      target = str(target.resolve().relative_to(ROOT))
      assert target in made or (ROOT / target).is_file(), f'{name}: {path}'
      if anchor:
        assert anchor in anchors(made.get(target) or (ROOT / target).read_text()), f'{name}: {path}#{anchor}'


def test_links_become_those_between_pages(pages):
  for text, turned in (
    ('[a](docs/tasks.md#b)', '[a](tasks.md#b)'),
    ('[a](../README.md)', '[a](index.md)'),
    ('![a](../benchmarks/pictures/a.png)', '![a](pictures/a.png)'),
    ('![a](studies/pictures/a.png)', '![a](pictures/a.png)'),
    ('[a](docs/notebooks/b.ipynb)', '[a](notebooks/b.md)'),
    ('[a](https://b.c/docs/d)', '[a](https://b.c/docs/d)'),
  ):
    assert pages.to_pages(text) == turned


def test_every_page_is_in_the_navigation(pages):
  settings = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())
  found = set(re.findall(r"'([\w/]+\.md)'", repr(settings['nav'])))
  notebooks = {f'notebooks/{path.stem}.md' for path in DOCS.glob('notebooks/*.ipynb')}
  assert found == {path.name for path in DOCS.glob('*.md')} | notebooks | {*pages.PAGES.values(), 'gin_fields.md'}
  assert settings['theme']['font'] is False


def test_every_field_has_a_row(pages):
  text = pages.field_page()
  for cls in pages.classes():
    rows = text.partition(f'\n## {cls.__name__}\n')[2].partition('\n## ')[0]
    for field in dataclasses.fields(cls):
      assert f'\n| `{field.name}`{{.name}} | ' in rows, f'{cls.__name__}.{field.name}'
    for name in pages.descriptions(cls):
      assert not name or name in {field.name for field in dataclasses.fields(cls)}, f'{cls.__name__} tells of {name}'
  for part in ('| `1.25` |', 'Macro `TRAIN_STEPS`', 'Macro `NUM_EXPERTS`', '| to be given |', 'top_p'):
    assert part in text


def test_every_flag_is_told():
  for action in main.make_parser()._actions:
    if action.help != argparse.SUPPRESS and action.option_strings:
      assert any(flag in TEXTS['docs/configuration.md'] for flag in action.option_strings), action.option_strings


def test_every_row_of_the_comparison_has_its_command():
  text = TEXTS['docs/comparison.md']
  rows = re.findall(r'^\| (\d+)\. ', text, re.M)
  shown = [n for line in re.findall(r'^# ([\d and]+)', text, re.M) for n in re.findall(r'\d+', line)]
  assert rows == shown == [str(n + 1) for n in range(30)]
  for letter in set(re.findall(r'\((\w)\) \|', text)):
    assert f'\n({letter}) ' in text or f'\n* ({letter}) ' in text


def test_readme_is_short():
  assert len(TEXTS['README.md'].splitlines()) <= 130
