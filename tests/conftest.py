"""What holds for all tests: eight emulated devices, a quiet TensorFlow, and caches that belong to this session.

Set before anything imports JAX, and in the environment, so that processes that tests start have it too.
"""

import os
import shutil
import tempfile

from tests.quick_compiler import QUICK_COMPILER

# With pytest-xdist the first process sets this up and the workers inherit it.
_FIRST_PROCESS = 'PYTEST_XDIST_WORKER' not in os.environ

if _FIRST_PROCESS:
  os.environ['JAX_PLATFORMS'] = 'cpu'
  compiler = '' if os.environ.get('OPTIMIZED_TESTS') else QUICK_COMPILER
  os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count=8 {compiler}'
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
  for name in ('JAX_ENABLE_X64', 'JAX_DEBUG_NANS'):
    os.environ.pop(name, None)
  # Corpora and compiled programs of the user are neither read nor written.
  os.environ['SWITCH_JAX_CACHE'] = tempfile.mkdtemp(prefix='switch_jax_tests_')
  # What was compiled once is read from there by all tests, workers and processes.
  os.environ['JAX_COMPILATION_CACHE_DIR'] = os.path.join(os.environ['SWITCH_JAX_CACHE'], 'xla')
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'


def pytest_configure(config):
  """Lets a compiled program be read that another process is writing: JAX warns, and compiles it itself."""
  config.addinivalue_line('filterwarnings', 'default:Error reading persistent compilation cache:UserWarning')


def pytest_unconfigure():
  """Removes the caches of the session."""
  if _FIRST_PROCESS:
    shutil.rmtree(os.environ['SWITCH_JAX_CACHE'], ignore_errors=True)


# These take minutes, and go first: the two processes of pytest-xdist then end at about the same time.
_LONG = ('benchmarks_test.py', 'two_processes_test.py', 'object_store_test.py', 'end_to_end_test.py')


def pytest_collection_modifyitems(items):
  """Puts the tests of long files first, in their order there."""
  items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))
