"""Points run as commands: their statuses, what is kept of them, and what is not run again. The runs are stand-ins."""

import fcntl
import itertools
import json
import threading
import types

import pytest

from switch_jax.sweep import runner

# Does as its first argument says, and writes down that it ran.
STAND_IN = """
import os, pathlib, signal, sys
with open(sys.argv[2], 'a') as file:
  file.write(sys.argv[1] + '\\n')
if sys.argv[1] == 'fail':
  print('error: no such task\\nbye')
  sys.exit(3)
if sys.argv[1] == 'stop':
  sys.exit(143)
if sys.argv[1] == 'kill':
  os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Returns the function that runs points by name and deed; it returns statuses and lines of progress."""
  monkeypatch.setattr(runner, '_COMMAND', ('-c', STAND_IN))

  def start(jobs=1, needs=(), **points):
    notes = []
    commands = {name: [deed, str(tmp_path / 'ran.txt')] for name, deed in points.items()}
    return runner.run_points(commands, dict(needs), tmp_path, tmp_path, jobs, notes.append), notes

  return start


def ran(tmp_path):
  return (tmp_path / 'ran.txt').read_text().split()


def test_the_status_of_each_point(run, tmp_path, monkeypatch):
  """By the clock of this test every run takes two minutes."""
  clock = types.SimpleNamespace(monotonic=itertools.count(0.0, 120.0).__next__)
  monkeypatch.setattr(runner, 'time', clock)
  statuses, notes = run(a='fine', b='fail', c='stop', d='kill')
  assert statuses == {'a': 'finished', 'b': 'failed', 'c': 'stopped', 'd': 'stopped'}
  assert ran(tmp_path) == ['fine', 'fail', 'stop', 'kill']
  assert notes[0] == 'a: began'
  assert notes[1] == '[1/4] a: finished in 120 s; about 6 min left'
  assert notes[3] == f'[2/4] b: FAILED with status 3: no such task ({tmp_path}/b/run.log); about 4 min left'
  assert notes[-1] == '[4/4] d: was stopped; the same command goes on from its checkpoint'
  assert [name for name in 'abcd' if (tmp_path / name / 'finished.json').exists()] == ['a']


def test_a_point_waits_for_those_that_it_needs(run, tmp_path):
  statuses, notes = run(4, {'a': ['b'], 'b': ['c']}, a='fine', b='stop', c='fail', d='fine')
  assert statuses == {'a': 'not run', 'b': 'not run', 'c': 'failed', 'd': 'finished'}
  assert sorted(ran(tmp_path)) == ['fail', 'fine']
  given_up = [note.partition('] ')[2].partition(';')[0] for note in notes if 'not run' in note]
  assert given_up == ['b: not run, because it needs c', 'a: not run, because it needs b']
  (tmp_path / 'ran.txt').unlink()
  statuses, _ = run(4, {'a': ['b'], 'b': ['c'], 'd': ['c']}, a='third', b='second', c='first', d='fine')
  assert set(statuses.values()) == {'finished'}
  order = ran(tmp_path)
  assert order.index('first') < order.index('second') < order.index('third')


def test_what_has_finished_is_not_run_again_and_seconds_add_up(run, tmp_path):
  run(a='fine', b='fail')
  _, notes = run(a='fine', b='fail')
  assert ran(tmp_path) == ['fine', 'fail', 'fail']
  assert notes[0] == '1 of 2 have finished before'
  finished = tmp_path / 'a' / 'finished.json'
  finished.write_text(json.dumps({'arguments': ['of a shorter run'], 'seconds': 100.0}))
  assert run(a='fine')[0] == {'a': 'finished'}
  record = json.loads(finished.read_text())
  assert record['arguments'] == ['fine', str(tmp_path / 'ran.txt')]
  assert record['seconds'] > 100.0


def test_finished_is_of_the_same_arguments(tmp_path):
  assert not runner.is_finished(tmp_path, ['--x'])
  (tmp_path / 'finished.json').write_text(json.dumps({'arguments': ['--x'], 'seconds': 1.0}))
  assert runner.is_finished(tmp_path, ('--x',))
  assert not runner.is_finished(tmp_path, ['--x', '--y'])


def test_a_locked_point_runs_elsewhere(run, tmp_path):
  (tmp_path / 'a').mkdir()
  with (tmp_path / 'a' / runner.LOG).open('ab') as log:
    fcntl.flock(log, fcntl.LOCK_EX)
    statuses, notes = run(a='fine', b='fine')
  assert statuses == {'a': 'running elsewhere', 'b': 'finished'}
  assert notes[0] == '[1/2] a: running elsewhere'
  assert ran(tmp_path) == ['fine']


def test_as_many_run_at_once_as_there_are_jobs(run, tmp_path, monkeypatch):
  """Both points wait for each other: one at a time would never end."""
  together = threading.Barrier(2, timeout=60)

  class Child:
    def __init__(self, *arguments, **settings):
      pass

    def wait(self):
      together.wait()
      return 0

  monkeypatch.setattr(runner.subprocess, 'Popen', Child)
  assert run(jobs=2, a='x', b='y')[0] == {'a': 'finished', 'b': 'finished'}


def test_the_line_of_a_log_that_says_what_went_wrong(tmp_path):
  log = tmp_path / 'run.log'
  for text, expected in (
    ('step 1\nerror: first\nerror: second \nnote: x\n', 'second'),
    ('step 1\nSegmentation fault\n\n', 'Segmentation fault'),
    ('\n \n', 'it wrote nothing'),
  ):
    log.write_text(text)
    assert runner.last_error(log) == expected
