"""The notebooks of docs/notebooks/: run in a shortened form; stored with what the whole form has printed and drawn."""

import importlib.util
import json
import pathlib
import re

import jax
import matplotlib
import matplotlib.pyplot as plt
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'docs' / 'notebooks'
# In this order, in one folder: the second opens the run of the first. These are set after the cell of parameters.
SHORTENED = {
  'first_run': {'TRAIN_STEPS': 2},
  'router': {'BATCHES': 1, 'FACTORS': ()},
  'your_csv': {'ROWS': 40, 'TRAIN_STEPS': 1},
}
NOTEBOOKS = {path.stem: json.loads(path.read_text(encoding='utf-8')) for path in sorted(FOLDER.glob('*.ipynb'))}
# The models of the examples, in small: files in the working directory come before the package's.
SMALL = {
  't5_tiny': {
    'emb_dim = 128': 'emb_dim = 16',
    'num_heads = 4': 'num_heads = 1',
    'head_dim = 32': 'head_dim = 16',
    'mlp_dim = 512': 'mlp_dim = 16',
    'num_encoder_layers = 2': 'num_encoder_layers = 1',
    'num_decoder_layers = 2': 'num_decoder_layers = 1',
  },
  'switch_tiny': {'encoder_layers = 2': 'encoder_layers = 1', 'decoder_layers = 2': 'decoder_layers = 1'},
}


def sources(name, kind='code'):
  return [(''.join(cell['source']), cell) for cell in NOTEBOOKS[name]['cells'] if cell['cell_type'] == kind]


@pytest.fixture
def small(tmp_path, monkeypatch):
  """An empty folder but for small models, and one device whose programs are compiled in little time."""
  (tmp_path / 'gin' / 'models').mkdir(parents=True)
  for name, changes in SMALL.items():
    text = (ROOT / 'gin' / 'models' / f'{name}.gin').read_text()
    for line, changed in changes.items():
      assert text.count(f'  {line}\n') == 1
      text = text.replace(f'  {line}\n', f'  {changed}\n')
    (tmp_path / 'gin' / 'models' / f'{name}.gin').write_text(text)
  monkeypatch.chdir(tmp_path)
  one = jax.devices()[:1]
  monkeypatch.setattr(jax, 'devices', lambda *_: one)
  matplotlib.use('agg')
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
  plt.close('all')


def test_they_run_one_after_the_other(small, capsys):
  said = {}
  for name, values in SHORTENED.items():
    namespace = {'__name__': '__main__'}
    for number, (source, cell) in enumerate(sources(name)):
      exec(compile(source, f'{name}, cell {number}', 'exec'), namespace)
      if 'parameters' in cell['metadata'].get('tags', ()):
        assert values.keys() <= namespace.keys()
        namespace |= values
    said[name] = capsys.readouterr().out
  assert 'finished at step 2; held-out loss ' in said['first_run']
  assert len(re.findall(r"^  '.*'$", said['first_run'], re.M)) == 2
  assert re.search(r'^encoder_0: [\d,]+ tokens$', said['router'], re.M)
  assert len(re.findall(r'^expert \d: ', said['router'], re.M)) == 8
  assert re.search(r'^\d+ of 12 new texts are right$', said['your_csv'], re.M)


@pytest.mark.parametrize('name', SHORTENED)
def test_what_is_stored_is_of_the_whole_form(name):
  cells = [cell for _, cell in sources(name)]
  assert [cell['execution_count'] for cell in cells] == list(range(1, len(cells) + 1))
  outputs = [output for cell in cells for output in cell['outputs']]
  assert not [output for output in outputs if output['output_type'] == 'error']
  assert [output for output in outputs if 'image/png' in output.get('data', {})]
  text = json.dumps(NOTEBOOKS[name])
  assert len(text) < 300_000
  assert not re.search(r'/(?:home|tmp|root|work)/', text)


@pytest.mark.parametrize('name', SHORTENED)
def test_the_page_of_a_notebook(name):
  spec = importlib.util.spec_from_file_location('notebooks', ROOT / 'docs' / 'site' / 'notebooks.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  page, pictures = module.to_page(NOTEBOOKS[name], name)
  assert page.startswith('# ')
  assert page.count('\n```python\n') == len(sources(name))
  assert all(f']({file})' in page and content.startswith(b'\x89PNG') for file, content in pictures.items())
  for source, _ in sources(name, 'markdown'):
    for path in re.findall(r'\]\((?!\w+:)([^)#]+)', source):
      assert (FOLDER / path).is_file(), path


def test_every_notebook_is_here():
  assert set(NOTEBOOKS) == set(SHORTENED)
