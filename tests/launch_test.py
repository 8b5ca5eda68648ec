"""The process that a run lives in: restarts, memory, logging, compilation cache, hosts, exit statuses."""

import fnmatch
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from switch_jax import launch
from switch_jax.config import ConfigError

ROOT = pathlib.Path(__file__).resolve().parent.parent


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


@pytest.mark.parametrize(
  ('workers', 'slices', 'joins'),
  [('', '', True), ('a,b', '', True), ('a', '', False), ('a', '1', False), ('a', '2', True), ('a,b', '2', True)],
)
def test_hosts_of_a_cloud_tpu(monkeypatch, workers, slices, joins):
  """One host is alone, unless other slices have theirs."""
  from jax._src.clusters import ClusterEnv

  monkeypatch.setattr(launch, 'has_tpu', lambda: True)
  monkeypatch.setattr(
    ClusterEnv, 'auto_detect_unset_distributed_params', lambda *known: ('10.0.0.1:8476', 2, 1, known[3])
  )
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', workers)
  monkeypatch.setenv('MEGASCALE_NUM_SLICES', slices)
  assert launch._cloud_tpu_hosts(60) == (('10.0.0.1:8476', 2, 1) if joins else (None, None, None))


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='malloc of glibc')
class TestKeepFreedMemory:
  """In processes of their own, since malloc's settings cannot be read back or undone."""

  CODE = """
import ctypes, resource
from switch_jax import launch
from switch_jax.config import ConfigError
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
  """What would change the process of the tests, in others."""

  def python(self, code, **environment):
    variables = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
    del variables['JAX_COMPILATION_CACHE_DIR']  # which goes before SWITCH_JAX_CACHE
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


class TestWhereItRuns:
  @pytest.mark.parametrize(('platforms', 'expected'), [('cpu', True), ('tpu,cpu', False), ('cuda', False)])
  def test_the_environment_decides(self, platforms, expected, monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', platforms)
    assert launch.runs_on_cpu() == expected

  @pytest.mark.parametrize(
    ('files', 'expected'),
    [((), True), (('/dev/accel0',), False), (('/dev/vfio/1',), False), (('/dev/nvidia0',), False)],
    ids=str,
  )
  def test_device_files_decide(self, files, expected, monkeypatch):
    monkeypatch.delenv('JAX_PLATFORMS')
    monkeypatch.setattr(launch.glob, 'glob', lambda pattern: fnmatch.filter(files, pattern))
    monkeypatch.setattr(launch.os.path, 'exists', lambda path: False)
    assert launch.runs_on_cpu() == expected


class TestHosts:
  @pytest.mark.parametrize('hosts', [(None, None, None), ('10.0.0.1:1234', 2, 0), ('[::1]:1', 1, 0)])
  def test_all_or_none(self, hosts):
    launch.check_hosts(*hosts)

  @pytest.mark.parametrize(
    ('hosts', 'message'),
    [
      (('a:1', None, 0), '--num_processes must be given too'),
      (('a', 2, 0), 'must be HOST:PORT'),
      ((':1', 2, 0), 'must be HOST:PORT'),
      (('a:b', 2, 0), 'must be HOST:PORT'),
      (('a:1', 0, 0), 'at least 1 process'),
      (('a:1', 2, -1), 'numbered from 0'),
    ],
  )
  def test_what_cannot_be(self, hosts, message):
    with pytest.raises(ConfigError, match=message):
      launch.check_hosts(*hosts)


class TestExitStatus:
  def test_the_status_of_the_command(self, capsys):
    assert launch.exit_status(len, ['a', 'b'], interrupted='') == 2
    assert capsys.readouterr() == ('', '')

  @pytest.mark.parametrize(
    ('error', 'status', 'message'),
    [
      (ConfigError('no.'), 1, 'error: no.\n'),
      (KeyboardInterrupt(), 130, '\ninterrupted; go on\n'),
      (ZeroDivisionError('x'), 1, 'unexpected ZeroDivisionError (see above)'),
    ],
  )
  def test_what_is_raised(self, error, status, message, capsys):
    def run(argv):
      raise error

    assert launch.exit_status(run, [], interrupted='go on') == status
    found = capsys.readouterr().err
    assert found.endswith(message) or message in found
    assert ('Traceback' in found) == isinstance(error, ZeroDivisionError)
    if isinstance(error, ConfigError):
      assert launch.exit_status(run, ['--debug'], interrupted='') == 1
      assert 'Traceback' in capsys.readouterr().err

  def test_a_flag_that_is_wrong_is_the_users_error(self):
    parser = launch.ArgumentParser()
    parser.add_argument('--number', type=int)
    with pytest.raises(ConfigError, match=r"invalid int value: 'x'; see --help\."):
      parser.parse_args(['--number=x'])
