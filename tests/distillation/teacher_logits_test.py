"""A teacher's logits in files: they train as the teacher itself, resumably, and are refused where they do not fit."""

import os
import shutil

import pytest

from switch_jax import main
from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import ConfigError
from switch_jax.distillation.teacher_logits import check_same, read_record
from switch_jax.folders.claim import Claim
from switch_jax.folders.metric_lines import read_metrics

SHRUNK = [
  '--gin_file=gin/examples/quickstart.gin', "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 12}",
  '--gin.BATCH_SIZE=8', '--gin.LOG_PERIOD=1', '--gin.CHECKPOINT_PERIOD=3', '--gin.EVAL_PERIOD=100',
  '--gin.EVAL_STEPS=1', '--gin.config.ModelConfig.emb_dim=32', '--gin.config.ModelConfig.mlp_dim=64',
]  # fmt: skip
STEPS = 6
DISTIL = ['--gin_file=gin/runs/distill.gin', '--gin.TEACHER_DTYPE=float32', '--gin.TEMPERATURE=2.0']


def run(folder, *more, steps=STEPS):
  return main.main([*SHRUNK, *more, f'--gin.MODEL_DIR={folder}', f'--gin.TRAIN_STEPS={steps}'])


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  folder = tmp_path_factory.mktemp('teacher')
  assert run(folder, '--gin.NUM_EXPERTS=4', steps=3) == 0
  return folder


@pytest.fixture(scope='module')
def recipe(teacher):
  return [*DISTIL, f'--gin.TEACHER_PATH={teacher}', '--gin.SOFT_WEIGHT=0.5']


@pytest.fixture(scope='module')
def live(recipe, tmp_path_factory):
  folder = tmp_path_factory.mktemp('live')
  assert run(folder, *recipe) == 0
  return folder


@pytest.fixture(scope='module')
def logits(recipe, tmp_path_factory):
  folder = tmp_path_factory.mktemp('files') / 'logits'
  assert run('unused', '--run_mode=teacher', *recipe, f'--gin.TEACHER_LOGITS={folder}') == 0
  return folder


def losses(folder, name='loss'):
  return [line[name] for line in read_metrics(folder / 'train' / 'metrics.jsonl')]


def test_files_of_the_whole_vocabulary_train_as_the_teacher_itself(recipe, live, logits, tmp_path):
  """Stopped after three steps too: the files are read on from the position of the data.

  Over several devices the two steps sum in another order; on one they agree in every bit.
  """
  cached = [*recipe, f'--gin.TEACHER_LOGITS={logits}']
  assert run(tmp_path, *cached, steps=3) == 0
  assert run(tmp_path, *cached) == 0
  assert losses(tmp_path) == pytest.approx(losses(live), rel=1e-5)
  divergence = losses(live, 'teacher_divergence')
  assert divergence[-1] > 1e-3
  assert losses(tmp_path, 'teacher_divergence') == pytest.approx(divergence, rel=1e-4, abs=1e-6)


def test_a_checkpoint_of_a_student_says_who_taught_it(teacher, live):
  record = CheckpointStore(live).read_config(STEPS)
  assert record['teacher']['path'] == str(teacher / 'checkpoints' / '3')
  assert record['teacher']['step'] == 3
  assert record['teacher']['parameters'] == CheckpointStore(teacher).read_config(3)['parameters']
  assert record['parameters'] > record['teacher']['parameters'] > 0  # eight experts learn from four
  assert 'token_embedder/embedding' in record['teacher']['initialized']
  assert record['run']['distillation']['soft_weight'] == 0.5


def test_a_resumed_student_repeats_an_uninterrupted_one(recipe, live, tmp_path):
  assert run(tmp_path, *recipe, steps=3) == 0
  assert run(tmp_path, *recipe) == 0
  assert losses(tmp_path) == losses(live)


def test_fewer_tokens_with_one_class_for_the_rest(recipe, live, tmp_path):
  """Less of a divergence than from the whole distribution: joining classes hides some."""
  cached = [*recipe, f'--gin.TEACHER_LOGITS={tmp_path / "logits"}', '--gin.TOP_K=48']
  assert run('unused', '--run_mode=teacher', *cached) == 0
  assert run(tmp_path / 'run', *cached) == 0
  whole, part = losses(live, 'teacher_divergence'), losses(tmp_path / 'run', 'teacher_divergence')
  assert losses(tmp_path / 'run') != losses(live)
  assert all(0 < a < b for a, b in zip(part, whole, strict=True))


def refused(capsys, *arguments, steps=STEPS):
  assert run(*arguments, steps=steps) == 1
  error = capsys.readouterr().err.rpartition('error: ')[2]
  assert 'Traceback' not in error
  return error


def test_files_of_other_data_or_another_temperature_are_refused(recipe, logits, tmp_path, capsys):
  cached = [*recipe, f'--gin.TEACHER_LOGITS={logits}']
  assert 'seed is 0 there and 1 here' in refused(capsys, tmp_path, *cached, '--gin.RANDOM_SEED=1')
  assert 'temperature is 2.0 there and 3.0 here' in refused(capsys, tmp_path, *cached, '--gin.TEMPERATURE=3.0')
  assert 'holds the logits of 6 batches, and this run has 7' in refused(capsys, tmp_path, *cached, steps=7)
  before = {path: path.stat().st_mtime_ns for path in logits.rglob('*')}
  error = refused(capsys, 'unused', '--run_mode=teacher', *cached, '--gin.TOP_K=4')
  assert 'top_k is 384 there and 4 here' in error
  assert {path: path.stat().st_mtime_ns for path in logits.rglob('*')} == before
  with Claim(logits / 'owner.json', 'the test', 'wait'):
    error = refused(capsys, 'unused', '--run_mode=teacher', *cached)
  assert error.startswith(f'TEACHER_LOGITS {logits} belongs to process {os.getpid()} on host ')
  assert {path: path.stat().st_mtime_ns for path in logits.rglob('*')} == before


def test_files_that_are_not_there_or_damaged(recipe, logits, tmp_path, capsys):
  nowhere = f'--gin.TEACHER_LOGITS={tmp_path / "nowhere"}'
  assert "holds no teacher's logits" in refused(capsys, tmp_path / 'run', *recipe, nowhere)
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'thesis.txt').write_text('mine')
  other = f'--gin.TEACHER_LOGITS={tmp_path / "other"}'
  assert 'holds other files' in refused(capsys, 'unused', '--run_mode=teacher', *recipe, other)
  broken = tmp_path / 'broken'
  shutil.copytree(logits, broken)
  (broken / 'teacher_log_probabilities' / '.zarray').write_text('{')
  assert 'is damaged' in refused(capsys, tmp_path / 'run', *recipe, f'--gin.TEACHER_LOGITS={broken}')


def test_the_run_mode_needs_a_teacher_and_a_folder(recipe, capsys):
  assert '--run_mode=teacher writes the logits of a teacher' in refused(capsys, 'unused', '--run_mode=teacher')
  assert 'TEACHER_LOGITS=/some/dir' in refused(capsys, 'unused', '--run_mode=teacher', *recipe)


def test_dry_run_lists_what_the_student_begins_with(recipe, tmp_path, capsys):
  assert run(tmp_path / 'new', *recipe, '--dry_run') == 0
  text = capsys.readouterr().out
  for expected in ('0.5 hard + 0.5 soft', '4 experts a layer', 'from the teacher:', 'layers_{0,1}/attention/{key,out'):
    assert expected in text
  assert not (tmp_path / 'new').exists()


def test_a_record_that_differs_is_named_and_one_of_another_format_refused(tmp_path):
  saved = {'data': {'seed': 0, 'task': 'a'}, 'temperature': 2.0}
  check_same('folder', saved, saved, 'Remedy.')
  with pytest.raises(ConfigError, match=r'seed is 0 there and 1 here.*Remedy\.'):
    check_same('folder', saved, {'data': {'seed': 1, 'task': 'a'}, 'temperature': 2.0}, 'Remedy.')
  (tmp_path / 'teacher_logits.json').write_text('{"format": 2}')
  with pytest.raises(ConfigError, match=r'format 2; this version reads format 1\)\. Remedy\.'):
    read_record(str(tmp_path), 'Remedy.')
