"""What holds for all tests: eight emulated devices, a quiet TensorFlow, and caches that belong to this session.

Set before anything imports JAX, and in the environment, so that processes that tests start have it too.
"""

import os
import shutil
import tempfile

# With pytest-xdist the first process sets this up and the workers inherit it.
_FIRST_PROCESS = 'PYTEST_XDIST_WORKER' not in os.environ

if _FIRST_PROCESS:
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
  # Corpora and compiled programs of the user are neither read nor written.
  os.environ['SWITCH_JAX_CACHE'] = tempfile.mkdtemp(prefix='switch_jax_tests_')
  for name in ('JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_X64', 'JAX_DEBUG_NANS'):
    os.environ.pop(name, None)


def pytest_unconfigure():
  """Removes the caches of the session."""
  if _FIRST_PROCESS:
    shutil.rmtree(os.environ['SWITCH_JAX_CACHE'], ignore_errors=True)
