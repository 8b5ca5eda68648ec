"""The table of docs/coming_from_t5x.md, row by row, and T5X's documented command lines, through the parser."""

import os
import pathlib
import re
import shlex

import pytest

from switch_jax import gin_files, gin_t5x, main
from switch_jax.config import ConfigError, EvaluationConfig, PredictionConfig, RunConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / 'docs' / 'coming_from_t5x.md'
MODEL, TASK = '--gin_file=gin/models/switch_tiny.gin', '--gin.MIXTURE_OR_TASK_NAME=t'
LENGTHS = "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}"
# What a command needs beside the row; of T5X's names for these the row is given alone.
COMMANDS = {
  'train': ([MODEL, '--gin_file=gin/runs/pretrain.gin'], ['--gin.MODEL_DIR=/d', TASK, '--gin.TRAIN_STEPS=1']),
  'eval': (['--run_mode=eval', '--gin_file=gin/runs/eval.gin'], ['--gin.MODEL_DIR=/d', TASK, LENGTHS]),
  'infer': (
    ['--run_mode=infer', '--gin_file=gin/runs/infer.gin'],
    ['--gin.MODEL_DIR=/d', '--gin.INPUT_FILE=i', '--gin.OUTPUT_FILE=o'],
  ),
}
ROOTS = {'train': RunConfig, 'eval': EvaluationConfig, 'infer': PredictionConfig}


def rows():
  """Yields what T5X has, when, and what the third column says, of each row."""
  for line in PAGE.read_text(encoding='utf-8').splitlines():
    cells = [cell.strip() for cell in line.strip('|').split(' | ')]
    if line.startswith('| `'):
      for code in re.findall(r'`([^`]+)`', cells[0]):
        for mode in cells[1].replace('any', 'train').split(', '):
          yield pytest.param(code, mode, cells[2], id=f'{mode} {code}')


def load(arguments, mode):
  flags, bindings = main.parse_flags(arguments)
  paths = [path for path in flags.gin_search_paths.split(',') if path]
  return gin_files.load_run(flags.gin_file, bindings, paths, root=ROOTS[mode])[0]


@pytest.mark.parametrize(('code', 'mode', 'here'), list(rows()))
def test_row(code, mode, here):
  files, others = COMMANDS[mode]
  given = shlex.split(code)
  if here == 'accepted':
    if given[0].startswith('--initialization_timeout'):
      given += ['--coordinator_address=h:1', '--num_processes=2', '--process_id=0']
    assert isinstance(load([*files, *others, *given], mode), ROOTS[mode])
    return
  names = re.findall(r'`([^`]+)`', here) or [
    {text: text for text in ('leave it out', 'one command', 'no setting')}[here]
  ]
  for arguments in ([*files, *given], [*files, *others, *given]):  # as T5X has it, and with all that we need
    with pytest.raises(ConfigError) as error:
      load(arguments, mode)
    message = str(error.value)
    assert '\n' not in message
    assert all(name in message for name in names), message


def test_the_table_has_all_names():
  text = PAGE.read_text(encoding='utf-8')
  flags = {name for name in gin_t5x.FLAGS if f'`--{name}' not in text}
  assert flags <= {'copybara_config'}
  assert all(f'--gin.{name}=' in text for name in gin_t5x.MACROS)
  for field in gin_t5x.FIELDS:
    assert f'{field.rpartition("/")[2]}=' in text, field


def t5x_commands():
  """The command lines of T5X's README.md and docs/usage/ (commit cc342d4) with names of modules and gin files ours."""
  model, tfds = MODEL, '--tfds_data_dir=/tmp/tfds'
  task = ['--gin.MIXTURE_OR_TASK_NAME="t"', '--gin.TASK_FEATURE_LENGTHS={"inputs": 512, "targets": 114}']
  train, where = '--gin_file=gin/runs/pretrain.gin', '--gin.MODEL_DIR="/tmp/pretrain-model/"'
  return {
    'pretrain': [model, train, where, *task, '--gin.TRAIN_STEPS=10000', '--gin.DROPOUT_RATE=0.0', tfds],
    'pretrain.md': [model, train, where, *task, '--gin.TRAIN_STEPS=10000', '--alsologtostderr'],
    'custom': ['--gin_search_paths=/tmp', model, train, where, *task, '--gin.TRAIN_STEPS=10000', tfds],
    'gin.md': [
      model, '--gin_file=gin/runs/finetune.gin', *task, '--gin.config.DataConfig.task_module="t5.data.mixtures"',
      '--gin.TRAIN_STEPS=1_020_000', '--gin.MODEL_DIR="/tmp/t5_1_1_base_finetune_gin"',
      '--gin.INITIAL_CHECKPOINT_PATH="gs://t5-data/pretrained_models/t5x/t5_1_1_small/checkpoint_1000000"',
      '--logtostderr',
    ],
  }  # fmt: skip


@pytest.mark.parametrize('arguments', [pytest.param(v, id=k) for k, v in t5x_commands().items()])
def test_documented_training(arguments):
  run = load(arguments, 'train')
  assert run.data.mixture_or_task_name == 't'
  assert run.model_dir.startswith('/tmp/')


@pytest.mark.parametrize(
  ('mode', 'given', 'ours'),
  [
    ('eval', ['--gin.EVAL_OUTPUT_DIR="/e"', '--gin.CHECKPOINT_PATH="/c"'], ['MODEL_DIR', 'leave it out']),
    ('infer', ['--gin.CHECKPOINT_PATH="/c"', '--gin.INFER_OUTPUT_DIR="/o"'], ['MODEL_DIR', 'OUTPUT_FILE']),
  ],
)
def test_documented_evaluation_and_prediction_are_told_our_names_all_at_once(mode, given, ours):
  with pytest.raises(ConfigError) as error:
    load([*COMMANDS[mode][0], *given, '--tfds_data_dir=/t'], mode)
  assert all(f'{flag} changes nothing' in str(error.value) for flag in given)
  assert all(name in str(error.value) for name in ours)


@pytest.mark.parametrize(
  ('name', 'ours'),
  [
    ('t5x/configs/runs/finetune.gin', 'gin/runs/finetune.gin'),
    ('t5x/contrib/moe/configs/runs/continue_pretrain.gin', 'gin/runs/pretrain.gin with INITIAL_CHECKPOINT_PATH'),
    ('flaxformer/t5x/configs/moe/models/switch_base.gin', 'gin/models/switch_base.gin'),
    ('t5x/examples/t5/t5_1_1/base.gin', 'gin/models/t5_base.gin'),
    ('t5x/examples/t5/t5_1_1/examples/base_wmt_from_scratch.gin', 'a file of gin/models/ with one of gin/runs/'),
  ],
)
def test_a_gin_file_of_theirs_has_ours_named(name, ours):
  with pytest.raises(ConfigError, match=rf'That is a file of T5X; here it is {re.escape(ours)}'):
    load([f'--gin_file={name}'], 'train')
  assert all((ROOT / file).exists() for file in re.findall(r'gin/\w+/\w+\.gin', ours))


def test_a_file_made_for_t5x_is_told_from_one_that_imports_tasks(tmp_path):
  file = tmp_path / 'theirs.gin'
  for line, said in (('import __main__ as train_script', 'made for T5X'), ('import my.tasks', 'task_module')):
    file.write_text(f'from __gin__ import dynamic_registration\n{line}\n')
    with pytest.raises(ConfigError, match=said):
      load([f'--gin_file={file}'], 'train')


@pytest.mark.parametrize(
  ('flag', 'dry'),
  [
    ('--dry_run=True', True),
    ('--nodry_run', False),
    ('--dry_run=false', False),
    ('--dry_run', True),
    ('--dry_run=1', True),
    ('--dry_run=T', True),
    ('--dry_run=0', False),
    ('--dry_run=f', False),
  ],
)
def test_booleans_as_absl_writes_them(flag, dry):
  assert main.parse_flags([MODEL, flag])[0].dry_run is dry
  with pytest.raises(ConfigError):
    main.parse_flags([MODEL, '--dry_run=perhaps'])
  with pytest.raises(ConfigError, match='JAX reads JAX_PLATFORMS from the environment'):
    main.parse_flags([MODEL, '--jax_platforms=cpu'])


@pytest.mark.parametrize('text', ['', 'BATCH_SIZE', '= 3', "BATCH SIZE = '"])
def test_gin_bindings_that_are_none(text):
  with pytest.raises(ConfigError, match=r'write --gin_bindings=NAME=VALUE'):
    main.parse_flags([MODEL, f'--gin_bindings={text}'])


def test_the_last_of_both_forms_of_bindings_wins():
  files, others = COMMANDS['train']
  pair = ['--gin.BATCH_SIZE=8', '--gin_bindings=BATCH_SIZE = 16']
  assert load([*files, *others, *pair], 'train').data.batch_size == 16
  assert load([*files, *others, pair[1], pair[0]], 'train').data.batch_size == 8
  assert load([*files, *others, '--gin_bindings', 'BATCH_SIZE = 32'], 'train').data.batch_size == 32


def test_the_folder_of_data_sets(monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', '/before')
  files, others = COMMANDS['train']
  monkeypatch.setattr(main.launch, 'quiet_logging', lambda debug: (_ for _ in ()).throw(ConfigError('so far')))
  assert main.main([*files, *others, '--tfds_data_dir=~/sets']) == 1
  assert os.environ['TFDS_DATA_DIR'] == os.path.expanduser('~/sets')
  assert main.main([*files, *others, '--tfds_data_dir=']) == 1
