"""The command line: bad input ends in one line and exit status 1, good input reaches training as configured."""

import importlib.util
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


class TestRestartWithHugePages:
  @pytest.fixture
  def restarts(self, monkeypatch):
    made = []
    monkeypatch.setattr(os, 'execve', lambda path, argv, environment: made.append((argv, environment)))
    monkeypatch.setattr(launch, '_huge_pages_available', lambda: True)
    for name in ('GLIBC_TUNABLES', launch._RESTARTED):
      monkeypatch.delenv(name, raising=False)
    return made

  def test_same_command_with_the_tunable(self, restarts, monkeypatch):
    monkeypatch.setattr(sys, 'orig_argv', ['python', '-m', 'switch_jax.main', '--x y'])
    launch.restart_with_huge_pages()
    [(argv, environment)] = restarts
    assert argv == [sys.executable, '-m', 'switch_jax.main', '--x y']
    assert environment['GLIBC_TUNABLES'] == 'glibc.malloc.hugetlb=1'

  def test_once(self, restarts, monkeypatch):
    launch.restart_with_huge_pages()
    monkeypatch.setenv(launch._RESTARTED, restarts[0][1][launch._RESTARTED])
    launch.restart_with_huge_pages()
    assert len(restarts) == 1

  @pytest.mark.parametrize('value', ['', 'glibc.malloc.check=1'])
  def test_not_against_the_user(self, restarts, monkeypatch, value):
    monkeypatch.setenv('GLIBC_TUNABLES', value)
    launch.restart_with_huge_pages()
    assert not restarts

  def test_not_for_accelerators(self, restarts, monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'tpu,cpu')
    launch.restart_with_huge_pages()
    monkeypatch.delenv('JAX_PLATFORMS')
    monkeypatch.setattr(launch, 'has_tpu', lambda: True)
    launch.restart_with_huge_pages()
    assert not restarts


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='malloc of glibc')
class TestKeepFreedMemory:
  """In processes of their own, since malloc's settings cannot be read back or undone."""

  CODE = """
import ctypes, resource
from switch_jax import launch
kept = launch.keep_freed_memory()
def large():
  block = ctypes.create_string_buffer(1 << 28)
  ctypes.memset(block, 1, 1 << 28)
large()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
large()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000)
"""

  @pytest.mark.parametrize(
    ('variables', 'expected'),
    [({}, 'True True'), ({'MALLOC_ARENA_MAX': '4'}, 'False')],
    ids=['kept', 'not asked'],
  )
  def test_a_freed_block_is_used_again(self, variables, expected):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', **variables}
    environment.pop('GLIBC_TUNABLES', None)
    result = subprocess.run(
      [sys.executable, '-c', self.CODE], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(expected)


class TestProcess:
  """What `untouched` keeps out of the tests above, in processes of its own."""

  def python(self, code, **environment):
    variables = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
    return subprocess.run([sys.executable, '-c', code], env=variables, capture_output=True, text=True)

  def test_compilation_cache(self, tmp_path):
    code = (
      'import sys; from switch_jax import launch; launch.use_compilation_cache(None)\n'
      'import jax; jax.jit(lambda x: x * 3)(1.0)\n'
      'launch.use_compilation_cache("off"); print(jax.config.jax_enable_compilation_cache)'
    )
    result = self.python(code, SWITCH_JAX_CACHE=str(tmp_path))
    assert result.stdout == 'False\n'
    assert result.stderr == ''
    assert list((tmp_path / 'xla').iterdir())

  def test_compilation_cache_that_cannot_be_written(self, tmp_path):
    (tmp_path / 'file').write_text('')
    code = (
      'from switch_jax import launch\n'
      'launch.use_compilation_cache(None)\n'
      f'launch.use_compilation_cache({str(tmp_path / "file")!r})'
    )
    result = self.python(code, SWITCH_JAX_CACHE=str(tmp_path / 'file'))
    assert result.stderr.startswith('note: compiled programs are not kept')
    assert 'ConfigError: --compilation_cache_dir=' in result.stderr

  @pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='libtpu is not installed')
  def test_libtpu_without_a_tpu_is_quiet(self):
    code = 'from switch_jax import launch; launch.quiet_logging(False); import jax; print(jax.default_backend())'
    environment = {name: value for name, value in os.environ.items() if name != 'JAX_PLATFORMS'}
    environment['PYTHONPATH'] = str(ROOT)
    if launch.has_tpu():
      pytest.skip('this machine has a TPU')
    result = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ('cpu\n', '')


def test_tests_have_eight_devices():
  assert jax.device_count() == 8
