"""gin files, where they are found, and values on the command line; what cannot be read is reported with its place."""

import pathlib
import re
import subprocess
import sys

import pytest

from switch_jax.config import ConfigError
from tests.gin_runs import PRETRAIN, QUICKSTART, ROOT, load, quickstart, write


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """Every test runs in an empty working directory: shipped files are found without it."""
  monkeypatch.chdir(tmp_path)
  return tmp_path


class TestWhereFilesAreFound:
  def test_working_directory_then_search_paths_then_installed(self):
    write('gin/models/switch_tiny.gin', "include 'gin/models/t5_tiny.gin'")
    assert quickstart().model.moe is None
    write('more/base.gin', "include 'gin/examples/my_text.gin'", "TEXT_FILES = 'more'")
    with pytest.raises(ConfigError, match=r"no gin file 'base\.gin'"):
      load('base.gin')
    assert load('base.gin', search_paths=['more']).data.text_files == 'more'
    assert load('models/switch_base.gin', 'runs/pretrain.gin', bindings=PRETRAIN).model.emb_dim == 768

  def test_search_path_that_is_no_folder(self):
    with pytest.raises(ConfigError, match="'nowhere', which is no folder"):
      load(QUICKSTART, search_paths=['nowhere'])


class TestValuesOnTheCommandLine:
  @pytest.mark.parametrize(
    'text',
    [
      '/some/dir',
      'gs://bucket/x',
      '/data/*.txt',
      'bfloat16',
      'a b',
      '1.2.3',
      'x # y',
      "it's",
      'a = b',
      'q"uote',
      '1\n2',
    ],
  )
  def test_what_is_no_literal_is_text(self, text):
    assert quickstart(f'MODEL_DIR={text}').model_dir == text

  @pytest.mark.parametrize('text', ["'/some/dir'", '"/some/dir"'])
  def test_quotes_are_allowed(self, text):
    assert quickstart(f'MODEL_DIR={text}').model_dir == '/some/dir'

  def test_home_is_expanded(self, monkeypatch):
    monkeypatch.setenv('HOME', '/home/of/me')
    assert quickstart('MODEL_DIR=~/runs').model_dir == '/home/of/me/runs'

  def test_literals_and_references(self):
    run = quickstart(
      'NUM_EXPERTS=16',
      'config.ModelConfig.dropout_rate=.1',
      'config.ModelConfig.mlp_activations=("gelu", "linear")',
      'config.MoeConfig.train_capacity_factor=None',
      'BATCH_SIZE=%NUM_EXPERTS',
      'config.DataConfig.pack=False',
    )
    assert run.model.moe.num_experts == run.data.batch_size == 16
    assert run.model.dropout_rate == 0.1
    assert run.model.mlp_activations == ('gelu', 'linear')
    assert run.model.moe.train_capacity_factor is None
    assert run.data.pack is False

  def test_shell_took_the_quotes_of_a_dict(self):
    with pytest.raises(ConfigError, match='the shell may have taken its quotes'):
      quickstart('TASK_FEATURE_LENGTHS={inputs:512,targets:114}')

  @pytest.mark.parametrize('text', ['MODEL_DIR', '=3', '3=3', 'a b=3'])
  def test_no_binding(self, text):
    with pytest.raises(ConfigError, match=r'write --gin\.NAME=VALUE'):
      quickstart(text)


class TestFilesThatCannotBeRead:
  @pytest.mark.parametrize(
    ('name', 'message'),
    [
      ('gin/examples/quikstart.gin', r"Did you mean 'gin/examples/quickstart\.gin'\?"),
      ('quickstart.gin', r"Did you mean 'gin/examples/quickstart\.gin'\?"),
      ('gin/models/base.gin', r"Did you mean 'gin/models/\w+_base\.gin'\?"),
      ('gin/models', r"is a folder; name one gin file \(.*'gin/models/switch_base\.gin'"),
      ('gs://bucket/x.gin', 'not on this disk'),
    ],
  )
  def test_missing(self, name, message):
    with pytest.raises(ConfigError, match=message):
      load(name)

  def test_include_that_undoes_an_earlier_line(self):
    write('mine.gin', 'TRAIN_STEPS = 7', "include 'gin/examples/quickstart.gin'")
    with pytest.raises(ConfigError, match=r'mine\.gin line 4 includes.*TRAIN_STEPS again.*line 3.*includes first'):
      load('mine.gin')

  def test_missing_include_names_the_line(self):
    write('mine.gin', "include 'gin/models/switch_bas.gin'")
    with pytest.raises(ConfigError, match=r"mine\.gin line 3: .*Did you mean 'gin/models/switch_base\.gin'\?"):
      load('mine.gin')

  def test_includes_itself(self):
    write('mine.gin', "include 'other.gin'")
    write('other.gin', "include 'mine.gin'")
    with pytest.raises(ConfigError, match=r'other\.gin line 3 includes .mine\.gin., which is being read already'):
      load('mine.gin')

  @pytest.mark.parametrize(
    ('line', 'message'),
    [
      ('MODEL_DIR = /some/dir', r'mine\.gin line 3: there is no value that gin can read in `MODEL_DIR = /some/dir`'),
      ('DTYPE = bfloat16', r"mine\.gin line 3: 'bfloat16' is no value in `DTYPE = bfloat16`; .*text in quotes"),
      ("X = {'a': 1", r'mine\.gin line \d: .*not closed'),
      ("X = 'a", r'mine\.gin line 3'),
      ('X : 3', r'mine\.gin line 3'),
      ('config.RunConfig.train_steps', r'mine\.gin line 3'),
    ],
  )
  def test_syntax(self, line, message):
    write('mine.gin', line)
    with pytest.raises(ConfigError, match=message):
      load('mine.gin')

  def test_no_import(self):
    write('mine.gin', 'config.RunConfig.train_steps = 3', header=False)
    with pytest.raises(ConfigError, match=r"mine\.gin line 1 names 'config\.RunConfig' without importing it"):
      load('mine.gin')

  def test_import_of_a_task_module_is_not_run(self):
    write('mine.gin', 'import tasks.docstrings')
    with pytest.raises(
      ConfigError, match=r"mine\.gin line 3 imports .*config\.DataConfig\.task_module = 'tasks\.docst"
    ):
      load('mine.gin')

  def test_other_names_for_the_import(self):
    header = 'from __gin__ import dynamic_registration\n'
    pathlib.Path('a.gin').write_text(header + 'from switch_jax import config as c\nc.RunConfig.train_steps = 3\n')
    pathlib.Path('b.gin').write_text(header + 'import switch_jax.config\nswitch_jax.config.RunConfig.eval_steps = 5\n')
    run = load(QUICKSTART, 'a.gin', 'b.gin')
    assert (run.train_steps, run.eval_steps) == (3, 5)

  def test_not_text(self):
    pathlib.Path('mine.gin').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ConfigError, match='cannot be read as text'):
      load('mine.gin')


def test_gin_config_missing():
  # Without gin-config the folder gin/ of the checkout is what `import gin` finds: a package with nothing in it.
  code = (
    'import sys, types; sys.modules["gin"] = types.ModuleType("gin"); '
    'from switch_jax import main; sys.exit(main.main())'
  )
  command = [sys.executable, '-c', code, f'--gin_file={QUICKSTART}']
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 1
  assert re.match('error: gin-config cannot be imported .*pip install gin-config', result.stderr)
