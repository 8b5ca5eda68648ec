"""The command line of conversions: what is said, and what is refused by name."""

import json
import pathlib
import shutil

import pytest

from switch_jax import convert, interop
from switch_jax.config import ConfigError
from tests.interop.own_checkpoints import MODELS, refused, run, save_own

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'


def written_by_t5x(folder, model):
  """Returns a T5X checkpoint of random numbers."""
  save_own(folder / 'ours', MODELS[model], with_optimizer=False)
  assert run(f'switch_jax:{folder}/ours', f't5x:{folder}/c') == 0
  return folder / 'c'


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return written_by_t5x(tmp_path_factory.mktemp('t5x'), 'base')


@pytest.mark.parametrize(
  ('target', 'more', 'message'),
  [
    ('out', (), "--to is '/out'"),
    ('numpy:out', (), "the format 'numpy' is unknown; known are switch_jax, t5x, huggingface"),
    ('switch_jax:out', ('--gin.num_expert=8',), "Did you mean 'num_experts'"),
    ('switch_jax:out', ('--gin.num_experts=8',), 'num_experts=8 contradicts the parameters'),
    ('switch_jax:out', ('--gin.TRAIN_STEPS=8',), '--gin.TRAIN_STEPS=8 changes nothing here'),
    ('switch_jax:out', ('--gin.eval_capacity_factor=big',), "MoeConfig.eval_capacity_factor is 'big'"),
    ('switch_jax:out', ('--dtype=bfloat16',), 'parameters of switch_jax are float32'),
    ('switch_jax:out', ('--dtype=int8',), "invalid choice: 'int8'"),
  ],
)
def test_wrong_commands(tmp_path, source, capsys, target, more, message):
  target = target.replace('out', f'{tmp_path}/out') if '://' not in target else target
  message = message.replace("'/out'", f"'{tmp_path}/out'")
  refused(capsys, tmp_path, f't5x:{source}', target, message, *more)


def test_unknown_architecture(tmp_path, capsys):
  folder = shutil.copytree(FIXTURES / 'hf_switch_tiny', tmp_path / 'h')
  config = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(config | {'model_type': 'bart'}))
  refused(capsys, tmp_path, f'huggingface:{folder}', f't5x:{tmp_path}/out', "model of type 'bart'")


def test_dense_where_switch_is_expected(tmp_path, capsys):
  folder = written_by_t5x(tmp_path, 'dense')
  capsys.readouterr()
  more = '--gin_file=gin/models/switch_tiny.gin'
  refused(capsys, tmp_path, f't5x:{folder}', f'switch_jax:{tmp_path}/out', 'is a dense T5, without experts', more)


def test_assumptions_and_overrides_are_printed(tmp_path, source, capsys):
  file = tmp_path / 'o.gin'
  file.write_text(
    'from __gin__ import dynamic_registration\nfrom switch_jax import config\n'
    'FACTOR = 3.0\nconfig.MoeConfig.eval_capacity_factor = %FACTOR\nconfig.OptimizerConfig.beta1 = 0.5\n'
  )
  more = [f'--gin_file={file}', '--gin.FACTOR=5.0', '--gin.config.MoeConfig.sequences_per_group=2']
  assert run(f't5x:{source}', f'switch_jax:{tmp_path}/out', *more) == 0
  out = capsys.readouterr().out
  assert 'given: eval_capacity_factor=5.0, sequences_per_group=2' in out
  assumed = next(line for line in out.splitlines() if line.startswith('  assumed'))
  assert 'train_capacity_factor=1.25' in assumed
  assert 'eval_capacity_factor' not in assumed
  assert interop.load_config('switch_jax', tmp_path / 'out').moe.eval_capacity_factor == 5.0


def test_places_and_overrides_of_the_command_line():
  assert convert.split_place('t5x:gs://bucket/c', '--from') == ('t5x', 'gs://bucket/c')
  with pytest.raises(ConfigError, match="--to is 'c'; write FORMAT:PATH"):
    convert.split_place('c', '--to')
  assert convert.read_overrides([], ['num_experts=4', 'config.ModelConfig.vocab_size=9']) == (
    {'num_experts': 4, 'vocab_size': 9},
    None,
  )
  assert convert.read_overrides([], ['seed=3'])[1] == {'seed': 3}


def test_macros_that_go_in_a_circle():
  for bindings, message in (
    (['X=%X'], r'^--gin\.X=%X: %X = %X goes in a circle; give one of them a value\.$'),
    (['X=%Y', 'Y=%Z', 'Z=%Y'], r'^--gin\.Z=%Y: %X = %Y = %Z = %Y goes in a circle'),
  ):
    with pytest.raises(ConfigError, match=message):
      convert.read_overrides([], ['num_experts=%X', *bindings])
  assert convert.read_overrides([], ['num_experts=%X', 'X=%Y', 'Y=4']) == ({'num_experts': 4}, None)


def test_a_checkpoint_of_byt5_has_its_vocabulary(source, tmp_path, capsys):
  assert run(f't5x:{source}', f'huggingface:{tmp_path}/hf') == 0
  assert json.loads((tmp_path / 'hf' / 'config.json').read_text()).get('tokenizer_class') is None
  (tmp_path / 'hf' / 'tokenizer_config.json').write_text('{"tokenizer_class": "ByT5Tokenizer"}')
  assert run(f'huggingface:{tmp_path}/hf', f'switch_jax:{tmp_path}/ours') == 0
  assert 'vocabulary: byt5, whose <extra_id_0> is 258' in capsys.readouterr().out
  assert interop.own.record(str(tmp_path / 'ours'))['vocabulary']['name'] == 'byt5'
