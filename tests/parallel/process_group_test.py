"""Processes that meet, wait, fail and die: threads where they come back, processes where they end."""

import concurrent.futures
import json
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from switch_jax.config import ConfigError
from switch_jax.parallel import process_group
from tests.parallel.hosts_test import free_address
from tests.patience import HUNG

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# A process that joins, and then does what its argument says.
SCRIPT = """
import os, signal, sys, threading, time
from switch_jax.parallel import process_group

address, count, process, what = sys.argv[1:]
process_group._SIGN_OF_LIFE, process_group._SILENCE = 0.3, 5
group = process_group.join(address, int(count), int(process), 60)
group.start()
if what == 'fails':
  group.fail('no more disk', may_be_an_echo=False)
  group.leave_after_failure(1)
if what == 'dies':
  time.sleep(0.2)
  os.kill(os.getpid(), signal.SIGKILL)
if what == 'echoes':  # a collective operation with the process that died
  group._heard.wait()
  group.fail('connection closed by peer', may_be_an_echo=True)
if what == 'says':
  print('there', flush=True)
  sys.stdin.readline()
if what in ('leaves', 'says'):
  group.leave()
  assert threading.active_count() == 1
  print('left')
  sys.exit()
time.sleep(600)
"""


PIPES = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}


def run_all(*what):
  """Returns status, output and errors of each of the processes."""
  command = [sys.executable, '-c', SCRIPT, free_address(), str(len(what))]
  running = [subprocess.Popen([*command, str(i), each], cwd=ROOT, **PIPES) for i, each in enumerate(what)]
  texts = [each.communicate(timeout=HUNG) for each in running]
  return [(each.returncode, *text) for each, text in zip(running, texts, strict=True)]


def test_all_leave_in_good_order():
  assert run_all('leaves', 'leaves', 'leaves') == [(0, 'left\n', '')] * 3


@pytest.mark.parametrize('failing', [0, 1])
def test_the_others_hear_of_a_failure(failing):
  what = ['waits', 'waits', 'waits']
  what[failing] = 'fails'
  heard = (1, '', f'error: process {failing} has failed: no more disk\n')
  assert run_all(*what) == [(1, '', '') if i == failing else heard for i in range(3)]


@pytest.mark.parametrize('dying', [0, 2])
def test_the_others_notice_a_death(dying):
  what = ['waits', 'echoes', 'waits']
  what[dying] = 'dies'
  for process, (status, _, errors) in enumerate(run_all(*what)):
    if process == dying:
      assert status == -9
    else:
      assert (status, errors.count('\n')) == (process_group.HOST_LOST, 1)
      assert errors.startswith(f'error: process {dying} (')
      assert 'has died or cannot be reached any more' in errors


@pytest.mark.parametrize('stopped', [0, 1])
def test_a_process_that_stands_still_is_given_up(stopped):
  command = [sys.executable, '-c', SCRIPT, free_address(), '3']
  running = [
    subprocess.Popen([*command, str(i), 'says' if i == stopped else 'waits'], cwd=ROOT, **PIPES) for i in range(3)
  ]
  try:
    assert running[stopped].stdout.readline() == 'there\n'
    running[stopped].send_signal(signal.SIGSTOP)
    for process, each in enumerate(running):
      if process != stopped:
        errors = each.communicate(timeout=HUNG)[1]
        assert each.returncode == process_group.HOST_LOST
        assert errors.startswith(f'error: process {stopped} (')
        assert errors.endswith(') has given no sign of life for 5 s\n')
  finally:
    running[stopped].kill()
    running[stopped].communicate()


def test_a_process_that_stood_still_for_a_while_stays():
  command = [sys.executable, '-c', SCRIPT, free_address(), '2']
  still, other = (subprocess.Popen([*command, str(i), ('leaves', 'says')[i]], cwd=ROOT, **PIPES) for i in range(2))
  assert other.stdout.readline() == 'there\n'
  still.send_signal(signal.SIGSTOP)
  time.sleep(2.5)
  still.send_signal(signal.SIGCONT)
  other.stdin.write('go on\n')
  other.stdin.close()
  other.stdin = None
  assert [each.communicate(timeout=HUNG)[0] for each in (still, other)] == ['left\n', 'left\n']


def test_a_missing_process_is_named_on_all_sides(monkeypatch, capsys):
  monkeypatch.setattr(process_group, 'PATIENCE', 0.5)
  address = free_address()
  with concurrent.futures.ThreadPoolExecutor() as pool:
    joins = [pool.submit(process_group.join, address, 4, process, seconds) for process, seconds in ((0, 2), (2, 20))]
  for join in joins:
    with pytest.raises(ConfigError, match=rf'processes 1 and 3 of 4 did not join {address} in time.*every host'):
      join.result()
  assert 'waiting for processes 1 and 3 of 4, ' in capsys.readouterr().err


def test_an_absent_process_0_is_named(monkeypatch, capsys):
  monkeypatch.setattr(process_group, 'PATIENCE', 0.3)
  address = free_address()
  with pytest.raises(ConfigError, match=f'process 1 of 2 could not join process 0 at {address}: Connection refused'):
    process_group.join(address, 2, 1, 1)
  assert f'waiting for process 0 of 2 at {address} (Connection refused)' in capsys.readouterr().err


def test_strangers_and_wrong_numbers_are_refused():
  address = free_address()
  with concurrent.futures.ThreadPoolExecutor() as pool:
    first = pool.submit(process_group.join, address, 2, 0, 30)
    while True:
      try:
        stranger = socket.create_connection(('127.0.0.1', int(address.split(':')[1])))
        break
      except OSError:
        pass
    stranger.sendall(b'GET / HTTP/1.1\r\n\r\n')
    assert stranger.recv(100) == b''
    with pytest.raises(ConfigError, match=r'--num_processes is 3 in process 1 on .* and 2 in process 0'):
      process_group.join(address, 3, 1, 30)
    with pytest.raises(ConfigError, match=r'--num_processes is 6 in process 5 on .* and 2 in process 0'):
      process_group.join(address, 6, 5, 30)
    second = process_group.join(address, 2, 1, 30)
    for group in (first.result(), second):
      group.start()
    assert list(pool.map(lambda group: group.leave(), (first.result(), second))) == [None, None]
    stranger.close()


def test_a_port_in_use_is_said():
  with socket.create_server(('127.0.0.1', 0)) as taken:
    address = f'127.0.0.1:{taken.getsockname()[1]}'
    with pytest.raises(ConfigError, match=f'process 0 cannot listen at {address}'):
      process_group.join(address, 2, 0, 5)


def test_a_message_may_come_in_pieces():
  with socket.create_server(('127.0.0.1', 0)) as server, socket.create_connection(server.getsockname()) as there:
    connection = process_group._Connection(server.accept()[0])
    line = json.dumps({'failed': 'x' * 10}).encode() + b'\n'
    there.sendall(line[:5])
    assert connection.receive() == []
    there.sendall(line[5:] + line)
    assert connection.receive() == [{'failed': 'x' * 10}] * 2
  assert connection.receive() is None
  connection.close()
