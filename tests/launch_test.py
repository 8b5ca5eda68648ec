"""The process that a run lives in: restarts, memory, logging, compilation cache, hosts, exit statuses."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from switch_jax import launch

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
  """What would change the process of the tests, in others."""

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
