"""Values between processes; several real ones are joined over loopback."""

import pathlib
import socket
import subprocess
import sys

from switch_jax.parallel.hosts import exchange, name_processes
from tests.patience import HUNG

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

SCRIPT = """
import sys, time
from switch_jax import launch
from switch_jax.config import ConfigError
from switch_jax.parallel import hosts

def run(arguments):
  process = int(arguments[1])
  launch.join_hosts(arguments[0], 4, process, 60)
  hosts.PATIENCE = 0.1
  hosts.exchange('clock', None)
  for i in range(3):
    values = hosts.exchange('a value', {'process': process, 'times': i, 'names': ['x'] * 200})
    assert values == [{'process': p, 'times': i, 'names': ['x'] * 200} for p in range(4)], values
  from switch_jax.parallel.agreement import require_agreement
  try:
    require_agreement('colour', {'sky': 'blue' if process < 3 else 'grey'})
  except ConfigError as error:
    differs = str(error)
  print(differs)
  if process != 2:
    hosts.exchange('a late value', process, seconds=0.5)
  else:
    time.sleep(1.5)
  return 0

sys.exit(launch.exit_status(run, sys.argv[1:], interrupted=''))
"""


def free_address():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{free.getsockname()[1]}'


def test_one_process_has_its_own_value():
  assert exchange('anything', {'a': 1}) == [{'a': 1}]


def test_processes_are_named():
  assert name_processes([1], 2) == 'process 1 of 2'
  assert name_processes([1, 3], 4) == 'processes 1 and 3 of 4'
  assert name_processes([*range(1, 9)], 16) == 'processes 1, 2, 3 and 5 more of 16'


def test_four_processes_exchange_compare_and_miss_one():
  command = [sys.executable, '-c', SCRIPT, free_address()]
  running = [
    subprocess.Popen([*command, str(i)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for i in range(4)
  ]
  for process, (output, errors) in enumerate(each.communicate(timeout=HUNG) for each in running):
    assert 'sky is "blue" in processes 0, 1 and 2 of 4, "grey" in process 3 of 4' in output
    assert running[process].returncode == 1
    if process == 2:
      assert 'has failed: process 2 of 4 has not given its a late value within 0.5 s.' in errors
    else:
      assert 'waiting for process 2 of 4 (a late value)\n' in errors
      assert 'error: process 2 of 4 has not given its a late value within 0.5 s.' in errors
