"""The command line: bad input ends in one line and exit status 1, good input reaches training as configured."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

import switch_jax
from switch_jax import launch, main, training
from switch_jax.config import ConfigError
from switch_jax.folders.model_dir import ModelDir
from switch_jax.monitoring.summary import RunFacts

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICKSTART = '--gin_file=gin/examples/quickstart.gin'


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
  """Keeps what a run sets for its whole process (logging, JAX's settings) out of the other tests."""
  monkeypatch.setattr(launch, 'quiet_logging', lambda debug: None)
  monkeypatch.setattr(launch, 'use_compilation_cache', lambda directory: None)
  monkeypatch.setattr(launch, 'join_hosts', lambda *hosts: None)


def result_of(reason, facts=None):
  """Returns what training came to, without having trained."""
  return training.TrainResult(
    state=None, step=7, metrics={}, held_out={}, reason=reason, model_dir=ModelDir('/x'), facts=facts
  )


@pytest.fixture
def calls(monkeypatch):
  """Records what main asks of training, in place of doing it."""
  made = []

  def train(run, **options):
    made.append((run, options))
    return result_of('finished')

  monkeypatch.setattr(training, 'train', train)
  monkeypatch.setattr(training, 'finished_step', lambda run: None)
  monkeypatch.setattr(training, 'describe', lambda run: f'about {run.model_dir}')
  return made


class TestMistakes:
  @pytest.mark.parametrize(
    ('arguments', 'message'),
    [
      ([], 'no gin file was given; start with --gin_file=gin/examples/quickstart.gin.'),
      (['--gin_file'], '--gin_file: expected one argument'),
      (['--gin_file=gin/examples/quikstart.gin'], "Did you mean 'gin/examples/quickstart.gin'?"),
      ([QUICKSTART, '--gin.TRAIN_STEP=5'], "Did you mean 'TRAIN_STEPS'?"),
      ([QUICKSTART, '--gin.TRAIN_STEPS'], '--gin.TRAIN_STEPS has no value; write --gin.TRAIN_STEPS=VALUE.'),
      ([QUICKSTART, '--gin.TRAIN_STEPS', '--debug'], '--gin.TRAIN_STEPS has no value'),
      ([QUICKSTART, '--gin_fil=x'], "unknown flag '--gin_fil=x': did you mean --gin_file?"),
      ([QUICKSTART, '--dryrun'], 'did you mean --dry_run?'),
      ([QUICKSTART, '-dry_run'], 'did you mean --dry_run?'),
      ([QUICKSTART, '--MODEL_DIR=/x'], 'macros are set with --gin.MODEL_DIR=/x.'),
      ([QUICKSTART, 'MODEL_DIR=/x'], 'macros are set with --gin.MODEL_DIR=/x.'),
      (['mine.gin'], 'a gin file is given with --gin_file=mine.gin.'),
      ([QUICKSTART, '--bogus'], 'see --help.'),
      ([QUICKSTART, '--run_mode=trian'], "must be one of train, eval, infer, plan, teacher. Did you mean 'train'?"),
      ([QUICKSTART, '--run_mode=eval'], "(config.EvaluationConfig); include 'gin/runs/eval.gin'"),
      ([QUICKSTART, '--run_mode=infer'], "include 'gin/runs/infer.gin'"),
      ([QUICKSTART, '--run_mode=plan'], '--run_mode=plan needs the TPU to compile for: --topology=v3:32x32'),
      ([QUICKSTART, '--topology=v3:4x4'], '--topology is for --run_mode=plan, and the run mode is train'),
      ([QUICKSTART, '--json=a.json'], '--json is for --run_mode=plan'),
      ([QUICKSTART, '--num_processes=two'], "invalid int value: 'two'"),
      ([QUICKSTART, '--profile=5'], "--profile is '5'; it must be first and last steps, as 100:105"),
      ([QUICKSTART, '--process_id=0'], '--coordinator_address and --num_processes must be given too'),
      (
        [QUICKSTART, '--process_id=2', '--num_processes=2', '--coordinator_address=a:1'],
        'they are numbered from 0 to num_processes - 1.',
      ),
      ([QUICKSTART, '--process_id=0', '--num_processes=2', '--coordinator_address=a'], 'must be HOST:PORT'),
      ([QUICKSTART, '--gin_search_paths=nowhere'], "'nowhere', which is no folder"),
    ],
  )
  def test_exit_status_and_message(self, arguments, message, calls, capsys):
    assert main.main(arguments) == 1
    output = capsys.readouterr()
    assert output.out == ''
    assert output.err.startswith('error: ') or '--debug' in arguments
    assert message in output.err
    assert output.err.count('\n') == 1 or '--debug' in arguments
    assert not calls

  def test_debug_shows_the_traceback(self, capsys):
    assert main.main([QUICKSTART, '--gin.TRAIN_STEP=5', '--debug']) == 1
    error = capsys.readouterr().err
    assert 'Traceback' in error
    assert error.splitlines()[-1].startswith('error: --gin.TRAIN_STEP=5')

  def test_mistakes_found_in_training(self, calls, monkeypatch, capsys):
    def train(run, **options):
      raise ConfigError('the MODEL_DIR belongs to another run.')

    monkeypatch.setattr(training, 'train', train)
    assert main.main([QUICKSTART]) == 1
    assert capsys.readouterr().err == 'error: the MODEL_DIR belongs to another run.\n'

  def test_bugs_keep_their_traceback(self, calls, monkeypatch, capsys):
    monkeypatch.setattr(training, 'train', lambda run, **options: 1 / 0)
    assert main.main([QUICKSTART]) == 1
    error = capsys.readouterr().err
    assert 'ZeroDivisionError: division by zero' in error
    assert error.splitlines()[-1].startswith('error: unexpected ZeroDivisionError')

  def test_keyboard(self, calls, monkeypatch, capsys):
    def train(run, **options):
      raise KeyboardInterrupt

    monkeypatch.setattr(training, 'train', train)
    assert main.main([QUICKSTART]) == 130
    assert 'the same command goes on from the last checkpoint' in capsys.readouterr().err

  def test_process_prints_one_line_and_no_traceback(self, tmp_path):
    command = [sys.executable, '-m', 'switch_jax.main', QUICKSTART, '--gin.config.ModelConfig.emb_dim=wide']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ''
    assert result.stderr == (
      "error: ModelConfig.emb_dim is 'wide'; it must be an integer. (Set by --gin.config.ModelConfig.emb_dim=wide.)\n"
    )


class TestRuns:
  def test_train(self, calls):
    assert main.main([QUICKSTART, '--gin.TRAIN_STEPS=7', '--gin.MODEL_DIR', '/x', '--profile']) == 0
    [(run, options)] = calls
    assert (run.train_steps, run.model_dir) == (7, '/x')
    assert options['profile'] is True
    assert "MODEL_DIR = '/x'" in options['config_gin']

  def test_profile_windows(self, calls):
    assert main.main([QUICKSTART, '--profile=3:4,10:12']) == 0
    assert main.main([QUICKSTART]) == 0
    assert [options['profile'] for _, options in calls] == [[(3, 4), (10, 12)], False]

  @pytest.mark.parametrize(('reason', 'status'), [('SIGTERM', 143), ('SIGINT', 130), ('finished', 0)])
  def test_why_training_ended_is_the_exit_status(self, calls, monkeypatch, capsys, reason, status):
    monkeypatch.setattr(training, 'train', lambda run, **options: result_of(reason))
    assert main.main([QUICKSTART]) == status
    said = f'{reason}: saved step 7 in /x/checkpoints/7; the same command continues from there.\n' if status else ''
    assert capsys.readouterr().out == said

  def test_the_summary_suggests_twice_as_many_steps(self, calls, monkeypatch, capsys):
    facts = RunFacts(steps=7, seconds=1.0)
    monkeypatch.setattr(training, 'train', lambda run, **options: result_of('finished', facts))
    assert main.main([QUICKSTART, '--gin.TRAIN_STEPS=7', '--gin.BATCH_SIZE=8']) == 0
    expected = f'  python -m switch_jax.main {QUICKSTART} --gin.BATCH_SIZE=8 --gin.TRAIN_STEPS=14'
    assert capsys.readouterr().out.splitlines()[-2:] == ['Next:', expected]

  def test_a_finished_run_is_not_opened_again(self, calls, monkeypatch, capsys):
    monkeypatch.setattr(training, 'finished_step', lambda run: 1000)
    assert main.main([QUICKSTART]) == 0
    assert (
      'has all 1,000 steps of this run (its newest checkpoint is step 1,000); nothing to do.' in capsys.readouterr().out
    )
    assert not calls

  def test_dry_run(self, calls, capsys):
    assert main.main([QUICKSTART, '--dry_run']) == 0
    assert capsys.readouterr().out == 'about runs/quickstart\n'
    assert not calls

  def test_search_paths(self, calls, tmp_path):
    (tmp_path / 'mine.gin').write_text('TRAIN_STEPS = 9\n')
    assert main.main([QUICKSTART, '--gin_file=mine.gin', f'--gin_search_paths={ROOT},{tmp_path}']) == 0
    assert calls[0][0].train_steps == 9

  @pytest.mark.parametrize('flag', ['--version', '--help'])
  def test_printed_and_done(self, flag, capsys):
    with pytest.raises(SystemExit) as caught:
      main.main([flag])
    assert caught.value.code == 0
    assert (switch_jax.__version__ if flag == '--version' else '--gin.NAME=VALUE') in capsys.readouterr().out


def test_tests_have_eight_devices():
  assert jax.device_count() == 8
