"""One owner: races between processes, dead and living owners near and far, damaged files, owners that are told."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest
import tensorstore

from switch_jax.config import ConfigError
from switch_jax.folders import claim as claims
from switch_jax.folders.claim import Claim, Holder
from tests.patience import HUNG

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ROUNDS = 50
QUICK = dict(refresh_seconds=0.05, watch_seconds=0.4)

# Tries to take the claim of each round at the moment it is told, says what came of it, and lets go when it is told.
RACER = """
import os, sys, time
from switch_jax.config import ConfigError
from switch_jax.folders.claim import Claim
folder, name, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(rounds):
  print('ready', flush=True)
  start = float(sys.stdin.readline())
  time.sleep(max(start - time.monotonic(), 0))
  claim = Claim(os.path.join(folder, f'{number}.json'), 'MODEL_DIR x', 'go away')
  try:
    claim.take()
    print('won', flush=True)
  except ConfigError as error:
    print('alive' in str(error) and 'refused', flush=True)
  sys.stdin.readline()
  claim.release()
"""


@pytest.fixture(params=['file', 'memory'])
def place(request, tmp_path):
  if request.param == 'file':
    return tmp_path / 'run' / 'owner.json'
  return tensorstore.KvStore.open({'driver': 'memory', 'path': 'run/owner.json'}).result()


def make(place, **settings):
  return Claim(place, 'MODEL_DIR x', 'set another --gin.MODEL_DIR', **{**QUICK, **settings})


def store_of(place):
  return claims._open(place)


def write(place, text):
  store_of(place).write('', text).result()


def read(place):
  return store_of(place).read('').result().value


def record(**changes):
  return json.dumps({**vars(Holder.here('another')), **changes})


def elsewhere(**changes):
  return record(host='far', machine='far boot pid:[1]', process=7, **changes)


@pytest.fixture
def ended():
  process = subprocess.Popen([sys.executable, '-c', ''])
  while claims.start_of(process.pid) is not None:
    time.sleep(0.01)
  yield process.pid  # a zombie still
  process.wait()


def spawn(script, *arguments):
  command = [sys.executable, '-c', script, *map(str, arguments)]
  return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(process, line):
  process.stdin.write(f'{line}\n')
  process.stdin.flush()


@pytest.mark.parametrize('left', ['nothing', 'a dead owner', 'a torn file and a lock'])
def test_of_processes_that_start_together_exactly_one_wins(tmp_path, left, ended):
  rounds = ROUNDS if left != 'a torn file and a lock' else 1
  for number in range(rounds):
    if left == 'a dead owner':
      write(tmp_path / f'{number}.json', record(process=ended, started=1))
    elif left != 'nothing':
      (tmp_path / f'{number}.json.__lock').write_text('half')
  racers = [spawn(RACER, tmp_path, name, rounds) for name in 'ab']
  try:
    for number in range(rounds):
      assert [racer.stdout.readline() for racer in racers] == ['ready\n'] * 2
      start = time.monotonic() + 0.01
      for i, racer in enumerate(racers):
        tell(racer, start + i * 0.001 * (number % 50))  # up to 50 ms apart
      assert sorted(racer.stdout.readline() for racer in racers) == ['refused\n', 'won\n'], number
      for racer in racers:
        tell(racer, 'on')
  finally:
    for racer in racers:
      racer.communicate(timeout=HUNG)
  assert not list(tmp_path.iterdir())


def test_threads_that_start_together(place):
  together, won = threading.Barrier(2, timeout=HUNG), []

  def run(claim):
    together.wait()
    try:
      claim.take()
      won.append(claim)
    except ConfigError:
      pass
    together.wait()
    claim.release()

  for number in range(ROUNDS):
    threads = [threading.Thread(target=run, args=(make(place),)) for _ in range(2)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert len(won) == number + 1
  assert store_of(place).read('').result().state == 'missing'


def test_a_claim_says_who_lives_and_leaves_nothing_behind(place):
  threads = threading.enumerate()
  with make(place) as claim:
    first = Holder.parse(read(place))
    assert (first.process, first.started) == (os.getpid(), claims.start_of(os.getpid()))
    while Holder.parse(read(place)).renewed == first.renewed:
      time.sleep(0.01)
    claim.check()
    with pytest.raises(ConfigError) as error:
      make(place).take()
    shown = (
      f'MODEL_DIR x belongs to process {os.getpid()} on host {first.host}, which is alive: its last sign of life was'
    )
    assert str(error.value).startswith(shown)
    assert str(error.value).endswith('0 s ago. Wait for it or stop it, or set another --gin.MODEL_DIR.')
  assert store_of(place).read('').result().state == 'missing'
  assert threading.enumerate() == threads
  claim.check()
  claim.release()  # twice is once
  with claim:
    claim.check()


def test_the_dead_of_this_machine_are_replaced_at_once(place, ended, monkeypatch):
  monkeypatch.setattr(time, 'sleep', None)  # nobody waits
  parent = os.getppid()
  dead = (
    dict(process=ended),
    dict(process=2**22 + 1),  # no such process can be
    dict(process=parent, started=claims.start_of(parent) - 1),  # its number was given to another since
    dict(),  # this process itself, which holds no such claim
  )
  for changes in dead:
    # Their clocks do not matter.
    for renewed, clock in ((1e12, '2999-01-01T00:00:00+00:00'), (0.0, '1999-01-01T00:00:00+00:00')):
      write(place, record(renewed=renewed, time=clock, **changes))
      with make(place, watch_seconds=1e9) as claim:
        claim.check()


def test_a_living_process_is_never_replaced(place, monkeypatch):
  parent = os.getppid()
  alive = record(process=parent, started=claims.start_of(parent), renewed=claims.boot_seconds() - 500)
  write(place, alive)  # though its signs of life stay away
  with pytest.raises(ConfigError, match=f'process {parent} on host .* sign of life was 50. s ago'):
    make(place).take()
  assert read(place) == alive.encode()

  def kill(process, number):
    raise PermissionError

  monkeypatch.setattr(os, 'kill', kill)
  assert Holder.parse(alive.encode()).is_alive()
  # It is somebody else's and /proc hides it: nothing is known of it.
  monkeypatch.setattr(claims, 'start_of', lambda process: None)
  assert Holder.parse(alive.encode()).is_alive() is None


@pytest.mark.parametrize(
  'left',
  [elsewhere(renewed=1e12), elsewhere(renewed=-1e12), '', '{"host": "far"', '[' * 100_000, '{"host": NaN}', 'null'],
  ids=['ahead', 'behind', 'empty', 'torn', 'deep', 'fields', 'null'],
)
def test_a_claim_from_elsewhere_or_damaged_is_watched_and_then_taken_over(place, left, capsys):
  write(place, left)
  with make(place) as claim:
    claim.check()
    assert Holder.parse(read(place)).process == os.getpid()
  who = 'process 7 on host far' if 'far boot' in left else 'an unknown process'
  assert capsys.readouterr().err == (
    f'note: MODEL_DIR x is claimed by {who}, which cannot be seen from here; watching for 0 s whether it is alive\n'
  )


@pytest.mark.parametrize('first', [elsewhere(), '?'])
def test_a_sign_of_life_from_elsewhere_refuses(place, first):
  write(place, first)
  claim, later = make(place, watch_seconds=60), threading.Timer(0.2, write, (place, elsewhere()))
  later.start()
  with pytest.raises(
    ConfigError, match='process 7 on host far, which is alive: its last sign of life was a moment ago'
  ):
    claim.take()
  later.join()
  assert Holder.parse(read(place)).process == 7


def test_a_claim_that_is_released_meanwhile_is_free(place):
  write(place, elsewhere())
  later = threading.Timer(0.2, write, (place, None))
  later.start()
  with make(place, watch_seconds=1e9) as claim:
    claim.check()
  later.join()


@pytest.mark.parametrize(
  ('left', 'said'),
  [(elsewhere(), 'process 7 on host far has taken it over'), ('?', 'an unknown process has'), (None, 'was removed')],
)
def test_an_owner_that_lost_its_claim_is_told_and_leaves_the_other_alone(place, left, said):
  claim = make(place)
  claim.take()
  write(place, left)
  claim._thread.join()  # it has nothing left to do
  with pytest.raises(ConfigError, match=f'MODEL_DIR x no longer belongs to this process: .*{said}'):
    claim.check()
  claim.release()
  assert read(place) == (left or '').encode()


def test_after_a_stop_of_the_process_the_first_check_tells(place, monkeypatch):
  with make(place, refresh_seconds=1000) as claim:
    write(place, elsewhere())
    claim.check()  # nobody has looked
    now = claims.boot_seconds()
    monkeypatch.setattr(claims, 'boot_seconds', lambda: now + 5000)
    with pytest.raises(ConfigError, match='no longer belongs'):
      claim.check()


def test_a_sign_of_life_whose_answer_was_lost_is_no_loss(place):
  with make(place, refresh_seconds=1000) as claim:
    write(place, read(place) + b' ')
    claim._renew()
    claim._renew()
    claim.check()
  assert store_of(place).read('').result().state == 'missing'


def test_a_store_that_fails_for_a_while_is_said_once(place, capsys, monkeypatch):
  claim, real = make(place), Claim._write
  claim.take()
  tries = []

  def fail(self, *arguments):
    tries.append(1)
    raise ValueError('UNAVAILABLE: 503')

  monkeypatch.setattr(Claim, '_write', fail)
  while len(tries) < 3:
    time.sleep(0.01)
  claim.check()
  monkeypatch.setattr(Claim, '_write', real)
  claim._renew()
  claim.release()
  assert capsys.readouterr().err == (
    'note: the claim on MODEL_DIR x could not be renewed (UNAVAILABLE: 503); trying again\n'
  )


def test_a_place_that_cannot_be_written_is_one_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ConfigError) as error:
    make(tmp_path / 'file' / 'owner.json').take()
  assert str(error.value) == 'MODEL_DIR x cannot be written to (Not a directory); set another --gin.MODEL_DIR.'


def test_a_killed_owner_is_replaced_at_once(tmp_path, monkeypatch):
  racer = spawn(RACER, tmp_path, 'a', 1)
  tell(racer, 0)
  assert [racer.stdout.readline() for _ in range(2)] == ['ready\n', 'won\n']
  with pytest.raises(ConfigError, match=f'process {racer.pid} on host'):
    make(tmp_path / '0.json').take()
  racer.kill()
  racer.wait()
  monkeypatch.setattr(time, 'sleep', None)
  with make(tmp_path / '0.json', watch_seconds=1e9):
    pass
  assert not list(tmp_path.iterdir())
  for stream in (racer.stdin, racer.stdout):
    stream.close()
