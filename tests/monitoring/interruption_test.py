"""A first signal asks, a second Ctrl-C ends; with jax.distributed the runtime is asked."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from jax.experimental import multihost_utils

from switch_jax.monitoring.interruption import EXIT_CODES, Interruption
from tests.patience import HUNG


def send(number):
  os.kill(os.getpid(), number)


def test_quiet_run():
  with Interruption(distributed=False) as interruption:
    assert interruption.requested(1) is None


@pytest.mark.parametrize(('number', 'name', 'code'), [(signal.SIGTERM, 'SIGTERM', 143), (signal.SIGINT, 'SIGINT', 130)])
def test_first_signal_is_a_request(number, name, code, capfd):
  before = signal.getsignal(number)
  with Interruption(distributed=False) as interruption:
    send(number)
    assert interruption.requested(1) == name
    assert interruption.requested(2) == name
  assert EXIT_CODES[name] == code
  assert signal.getsignal(number) is before
  assert ('Press Ctrl-C again' in capfd.readouterr().err) == (name == 'SIGINT')


def test_second_ctrl_c_stops_at_once():
  before = signal.getsignal(signal.SIGINT)
  with Interruption(distributed=False):
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      send(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is before


def test_repeated_sigterm_is_one_request():
  with Interruption(distributed=False) as interruption:
    send(signal.SIGTERM)
    send(signal.SIGTERM)
    assert interruption.requested(1) == 'SIGTERM'


def test_distributed_leaves_sigterm_to_the_runtime(monkeypatch):
  asked = []
  monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', lambda step: asked.append(step) or step == 3)
  before = signal.getsignal(signal.SIGTERM)
  with Interruption(distributed=True) as interruption:
    assert signal.getsignal(signal.SIGTERM) is before
    assert [interruption.requested(step) for step in (1, 2, 3)] == [None, None, 'SIGTERM']
  assert asked == [1, 2, 3]


def test_outside_the_main_thread_nothing_is_installed():
  before, answers = signal.getsignal(signal.SIGTERM), []

  def run():
    with Interruption(distributed=False) as interruption:
      answers.append((interruption.requested(1), signal.getsignal(signal.SIGTERM)))

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert answers == [(None, before)]


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_with_the_real_runtime(name):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  program = f"""
import os, signal, time, jax
jax.distributed.initialize('127.0.0.1:{port}', 1, 0)
from switch_jax.monitoring.interruption import Interruption
with Interruption() as interruption:
  os.kill(os.getpid(), signal.{name})
  for step in range(200):
    if stop := interruption.requested(step):
      print(stop, step > 0)
      break
    time.sleep(0.05)
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=HUNG, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout.split()[:1] == [name], done.stderr
