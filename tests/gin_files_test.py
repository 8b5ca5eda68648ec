"""Bindings become one RunConfig, and every mistake has a sentence of its own that says where it is."""

import pathlib
import subprocess
import sys

import gin
import pytest

from switch_jax import gin_files, gin_statements
from switch_jax.config import ConfigError, MoeConfig, RunConfig, SweepConfig
from tests.gin_runs import PRETRAIN, QUICKSTART, ROOT, load, quickstart, write

MODELS = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob('gin/models/*.gin'))
EXAMPLES = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob('gin/examples/*.gin'))


def load_model(name, *bindings):
  return load(name, 'gin/runs/pretrain.gin', bindings=(*PRETRAIN, *bindings)).model


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """Every test runs in an empty working directory: shipped files are found without it."""
  monkeypatch.chdir(tmp_path)
  return tmp_path


class TestShippedFiles:
  def test_there_are_some(self):
    assert len(MODELS) >= 16
    assert QUICKSTART in EXAMPLES

  @pytest.mark.parametrize('name', MODELS)
  def test_model(self, name):
    model = load_model(name)
    assert (model.moe is None) == pathlib.Path(name).name.startswith(('t5_', 'mt5_'))

  @pytest.mark.parametrize('name', EXAMPLES)
  def test_example(self, name):
    bindings = ['TEXT_FILES=/some/dir/*.txt'] if name.endswith('my_text.gin') else []
    bindings += ['TASK_FILES=/some/dir/*.csv'] if 'my_task' in name else []
    assert isinstance(load(name, bindings=bindings), RunConfig)

  @pytest.mark.parametrize('name', MODELS + EXAMPLES)
  def test_every_macro_is_used(self, name):
    reader = gin_statements.Reader(gin_statements.search_roots())
    for file in (name, 'gin/runs/pretrain.gin'):
      reader.read_file(file, 'test')
    used = {leaf.name for b in reader.bindings for leaf in gin_statements.leaves(b.value) if hasattr(leaf, 'name')}
    assert {b.name for b in reader.bindings if not b.owner} <= used

  @pytest.mark.parametrize('model', ['mswitch_base', 'mt5_base'])
  def test_mc4(self, model):
    run = load(f'gin/models/{model}.gin', 'gin/runs/pretrain_mc4.gin', bindings=['MODEL_DIR=/some/dir'])
    assert run.data.feature_lengths == {'inputs': 1024, 'targets': 229}
    assert (run.data.languages, run.data.sampling_exponent, run.data.vocabulary) == (None, 0.3, None)
    assert (run.data.batch_size, run.train_steps) == (1024, 10**6)

  def test_quickstart(self):
    run = quickstart()
    assert run.model_dir == 'runs/quickstart'
    assert run.model.activation_dtype == 'float32'
    assert run.data.task_module == 'switch_jax.tasks.docstrings'
    assert run.data.feature_lengths == {'inputs': 64, 'targets': 14}
    assert run.optimizer.schedule == 'rsqrt'

  @pytest.mark.parametrize(
    ('name', 'billions'),
    [  # Paper: 223M and 739M; 7.4B, 26B, 395B and 1571B. T5-XXL is 11B, mT5-Base 580M; mSwitch's size is not known.
      ('t5_base', 0.2229),
      ('t5_large', 0.7377),
      ('t5_xxl', 11.1),
      ('switch_base', 7.415),
      ('switch_large', 26.27),
      ('switch_xxl', 395),
      ('switch_c', 1571),
      ('mt5_base', 0.5824),
      ('mswitch_base', 7.774),
      ('st_moe_large', 4.103),  # the paper: 4.1B and 269B
      ('st_moe_32b', 269.1),
    ],
  )
  def test_number_of_parameters_is_the_papers(self, name, billions):
    m = load_model(f'gin/models/{name}.gin')
    attention = 4 * m.emb_dim * m.num_heads * m.head_dim
    mlp = (len(m.mlp_activations) + 1) * m.emb_dim * m.mlp_dim
    total = m.vocab_size * m.emb_dim * (1 if m.logits_via_embedding else 2)
    for stack, attentions in (('encoder', 1), ('decoder', 2)):
      sparse = len(m.switch_layers(stack))
      experts = m.moe.num_experts if m.moe else 1
      total += m.num_layers(stack) * attentions * attention + (m.num_layers(stack) - sparse) * mlp
      total += sparse * (experts * mlp + m.emb_dim * experts) + (sparse * mlp if m.moe and m.moe.extra_mlp else 0)
    assert total / 1e9 == pytest.approx(billions, rel=0.005)

  def test_operative_configuration_describes_the_same_run(self):
    run, text = gin_files.load_run([QUICKSTART], ['NUM_EXPERTS=4', 'MODEL_DIR=/it is/"quoted"'])
    pathlib.Path('config.gin').write_text(text)
    assert load('config.gin') == run
    assert run.model_dir == '/it is/"quoted"'


class TestPrecedence:
  def test_later_files_win(self):
    write('one.gin', "include 'gin/examples/quickstart.gin'", 'TRAIN_STEPS = 1')
    write('two.gin', 'TRAIN_STEPS = 2')
    assert load('one.gin').train_steps == 1
    assert load('one.gin', 'two.gin').train_steps == 2

  def test_command_line_wins(self):
    write('two.gin', 'TRAIN_STEPS = 2', 'config.RunConfig.train_steps = 4')
    assert load(QUICKSTART, 'two.gin').train_steps == 4
    assert load(QUICKSTART, 'two.gin', bindings=['config.RunConfig.train_steps=3']).train_steps == 3
    assert quickstart('TRAIN_STEPS=2', 'TRAIN_STEPS=5').train_steps == 5

  def test_classes_no_file_mentions_can_be_bound(self):
    assert quickstart('config.MeshConfig.model=2').mesh.model == 2
    run = load('gin/models/t5_tiny.gin', QUICKSTART, bindings=['config.MoeConfig.router=top2'])
    assert run.model.moe.router == 'top2'

  def test_scopes(self):
    run = quickstart('small/config.ModelConfig.emb_dim=64', 'config.RunConfig.model=@small/config.ModelConfig()')
    assert run.model.emb_dim == 64
    assert run.model.moe.num_experts == 8

  def test_replacing_a_part_leaves_unused_names_of_files_alone(self):
    assert quickstart('config.ModelConfig.moe=None').model.moe is None
    assert quickstart('config.ModelConfig.dropout_rate=0.3').model.dropout_rate == 0.3


class TestMistakes:
  """One sentence each: what was got, and what to do."""

  @pytest.mark.parametrize(
    ('binding', 'message'),
    [
      ('MODEL_DIRR=/x', r"--gin\.MODEL_DIRR=/x changes nothing: .*Did you mean 'MODEL_DIR'\?"),
      ('NUM_MODEL_PARTITIONS=2', r'here it is config\.MeshConfig\.model\.'),
      ('NUM_EXPERT_PARTITIONS=2', r'here it is config\.MeshConfig\.expert\.'),
      ('warmup_steps=2', r'write config\.OptimizerConfig\.warmup_steps\.'),
      ('config.ModelConfig.embdim=3', r"config\.ModelConfig has no field 'embdim'\. Did you mean 'emb_dim'\?"),
      ('config.ModelConfig.num_experts=3', r'Did you mean config\.MoeConfig\.num_experts\?'),
      ('config.ModleConfig.emb_dim=3', r"no configuration class 'config\.ModleConfig'\. Did you mean 'ModelConfig'\?"),
      ('ModelConfig.emb_dim=3', r'did you mean config\.ModelConfig\?'),
      ('train.eval_steps=3', 'train.eval_steps is a setting of T5X; here it is EVAL_STEPS'),
      ('TRAIN_STEPS=1e3', r'train_steps is 1000\.0; .*Write 1000\. \(Set by --gin\.TRAIN_STEPS=1e3\.\)'),
      ('TRAIN_STEPS=many', r"train_steps is 'many'; it must be an integer\. \(Set by --gin\.TRAIN_STEPS=many\.\)"),
      ('TRAIN_STEPS=1e999', r'TRAIN_STEPS=1e999 is inf'),
      ('MODEL_DIR=17', r'model_dir is 17; it must be a string'),
      ('MODEL_DIR=%MODLE_DIR', r'did you mean %MODEL_DIR\?'),
      ('MODEL_DIR=%MODEL_DIR', r'%MODEL_DIR = %MODEL_DIR goes in a circle'),
      ('MODEL_DIR=%gin.REQUIRED', r'MODEL_DIR has no value .*set it with --gin\.MODEL_DIR=/some/dir\.'),
      ('config.ModelConfig.moe=@config.MoeConfig', r'write @config\.MoeConfig\(\)'),
      ('config.ModelConfig.moe=@config.Moe()', r"no configuration class 'config\.Moe'"),
      ('config.RunConfig.model=@config.RunConfig()', r'refer to each other in a circle'),
      ('config.RunConfig.model=@config.MoeConfig()', r'RunConfig\.model is MoeConfig.*must be a config\.ModelConfig'),
      ('teacher/config.ModelConfig.emb_dim=3', r'nothing refers to @teacher/config\.ModelConfig\(\)'),
    ],
  )
  def test_binding(self, binding, message):
    with pytest.raises(ConfigError, match=message) as caught:
      quickstart(binding)
    assert 'In call to configurable' not in str(caught.value)
    assert '\n' not in str(caught.value)

  def test_circle_of_two(self):
    with pytest.raises(ConfigError, match='goes in a circle'):
      quickstart('BATCH_SIZE=%TRAIN_STEPS', 'TRAIN_STEPS=%BATCH_SIZE')

  def test_bypassed_on_the_command_line(self):
    with pytest.raises(ConfigError, match=r'DROPOUT_RATE=0\.2 changes nothing: .*dropout_rate=0\.1 sets'):
      quickstart('config.ModelConfig.dropout_rate=0.1', 'DROPOUT_RATE=0.2')
    with pytest.raises(ConfigError, match=r'NUM_EXPERTS=4 changes nothing: this run has no config\.MoeConfig'):
      quickstart('config.ModelConfig.moe=None', 'NUM_EXPERTS=4')

  def test_misspelt_macro_in_a_file(self):
    write('mine.gin', "include 'gin/examples/quickstart.gin'", 'TRAIN_STEP = 1')
    with pytest.raises(ConfigError, match=r"mine\.gin line 4 changes nothing: .*Did you mean 'TRAIN_STEPS'\?"):
      load('mine.gin')

  def test_a_name_that_nothing_uses_where_nothing_uses_any(self, tmp_path):
    mine = tmp_path / 'sweep.gin'
    mine.write_text(
      'from __gin__ import dynamic_registration\nfrom switch_jax import config\n'
      "SWITCH = 'a.gin'\nconfig.SweepConfig.seeds = (0, 1)\n"
    )
    with pytest.raises(
      ConfigError, match=r'line 3 changes nothing: nothing uses the name SWITCH, or any other; remove'
    ):
      gin_files.load_run([str(mine)], root=SweepConfig)

  def test_class_nothing_refers_to(self):
    write(
      'mine.gin',
      "include 'gin/models/t5_tiny.gin'",
      "include 'gin/runs/pretrain.gin'",
      'config.MoeConfig:',
      '  num_experts = 4',
    )
    with pytest.raises(
      ConfigError, match=r'line 6 changes nothing: .*config\.ModelConfig\.moe = @config\.MoeConfig\(\)'
    ):
      load('mine.gin', bindings=PRETRAIN)

  def test_undefined_macros_are_named_together(self):
    with pytest.raises(ConfigError, match=r'MODEL_DIR, TRAIN_STEPS.* have no value .*--gin\.MODEL_DIR=/some/dir --gin'):
      load('gin/models/t5_tiny.gin', 'gin/runs/pretrain.gin')
    with pytest.raises(
      ConfigError, match=r'TEXT_FILES has no value \(gin/examples/my_text\.gin line \d+\); set it with'
    ):
      load('gin/examples/my_text.gin')

  def test_undefined_macro_that_was_misspelt(self):
    with pytest.raises(ConfigError, match=r'TEXT_FILE=x is used nowhere: write TEXT_FILES'):
      load('gin/examples/my_text.gin', bindings=['TEXT_FILE=x'])

  def test_macro_of_t5x_is_not_a_misspelling(self):
    with pytest.raises(ConfigError, match=r'changes nothing: here it is config\.DataConfig\.task_module\.$'):
      load('gin/models/t5_tiny.gin', 'gin/runs/pretrain.gin', bindings=['MIXTURE_OR_TASK_MODULE=t5.data.mixtures'])

  def test_wrong_value_in_a_file_names_the_line(self):
    write('mine.gin', "include 'gin/examples/quickstart.gin'", 'config.ModelConfig:', "  mlp_dim = '512'")
    with pytest.raises(ConfigError, match=r"mlp_dim is '512'; it must be an integer.*mine\.gin line 5"):
      load('mine.gin')

  def test_no_run(self):
    with pytest.raises(ConfigError, match=r'describes the run .*gin/runs/pretrain\.gin'):
      load('gin/models/switch_tiny.gin')

  def test_no_model(self):
    with pytest.raises(ConfigError, match=r'config\.ModelConfig needs vocab_size.*gin/models/'):
      load('gin/runs/pretrain.gin', bindings=PRETRAIN)


class TestGinStaysOutside:
  def test_nothing_of_gin_remains(self):
    run = quickstart()
    assert gin.config_str().strip() == ''
    assert type(run.model.moe) is MoeConfig
    assert MoeConfig(num_experts=2).num_experts == 2

  def test_private_name_of_gin(self):
    assert isinstance(gin.config._OPERATIVE_CONFIG, dict)

  def test_loading_imports_no_heavy_library(self):
    code = (
      'import sys; from switch_jax import main, gin_files; '
      f'gin_files.load_run(["{QUICKSTART}"]); '
      'print([m for m in ("jax", "numpy", "tensorflow", "flax", "seqio", "orbax") if m in sys.modules])'
    )
    found = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.strip() == '[]'
