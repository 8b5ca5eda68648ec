"""Points run as commands: their statuses, what is kept of them, and what is not run again. The runs are stand-ins."""

import fcntl
import itertools
import json
import threading
import types

import pytest

from switch_jax.sweep import runner
from tests.patience import HUNG

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

  def start(jobs=1, needs=(), kinds=None, together=1, **points):
    notes = []
    commands = {name: [deed, str(tmp_path / 'ran.txt')] for name, deed in points.items()}
    return runner.run_points(commands, dict(needs), tmp_path, tmp_path, jobs, notes.append, kinds, together), notes

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
  together = threading.Barrier(2, timeout=HUNG)

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


def test_groups_are_of_one_kind_and_as_large_as_may_be():
  kinds = {'a': 'x', 'b': 'y', 'c': 'x', 'd': 'x', 'e': 'y'}
  assert runner.make_groups('abcdef', kinds, 2) == [['a', 'c'], ['b', 'e'], ['d'], ['f']]
  assert runner.make_groups('abc', kinds, 1) == [['a'], ['b'], ['c']]


# Does as the first argument of the first run says, and writes down which ran.
TOGETHER = """
import json, pathlib, sys
file = pathlib.Path(sys.argv[1])
runs = json.loads(file.read_text())
with open(runs[0][1], 'a') as ran:
  ran.write('+'.join(run[0] for run in runs) + '\\n')
if runs[0][0] == 'crash':
  sys.exit('error: too much memory')
if runs[0][0] == 'halt':
  sys.exit(143)
file.with_name('errors.json').write_text(json.dumps(['it is nan' if run[0] == 'nan' else None for run in runs]))
"""


def test_points_that_are_trained_together(run, tmp_path, monkeypatch):
  """One that diverges fails alone; of a group that fails as a whole each is tried alone; a signal stops all."""
  monkeypatch.setattr(runner, '_TOGETHER_COMMAND', ('-c', TOGETHER))
  kinds = {name: 'one' for name in 'abc'} | {name: 'two' for name in 'de'} | {name: 'three' for name in 'fg'}
  points = {'a': 'ok', 'd': 'crash', 'b': 'nan', 'f': 'halt', 'c': 'fine', 'e': 'fail', 'g': 'fine', 'h': 'single'}
  statuses, notes = run(kinds=kinds, together=5, **points)
  assert ran(tmp_path) == ['ok+nan+fine', 'crash+fail', 'crash', 'fail', 'halt+fine', 'single']
  assert statuses == {
    'a': 'finished', 'b': 'failed', 'c': 'finished', 'd': 'finished', 'e': 'failed', 'f': 'stopped', 'g': 'stopped',
    'h': 'finished',
  }  # fmt: skip
  assert notes[0] == 'a and 2 more, together: began'
  assert 'd and 1 more, together: began' in notes
  assert '2 points failed together: too much memory; each is run alone' in notes
  assert f'what they say is in {tmp_path}/a/run.log' in (tmp_path / 'b' / 'run.log').read_text()
  assert runner.last_error(tmp_path / 'b' / 'run.log') == 'it is nan'
  assert json.loads((tmp_path / 'c' / 'finished.json').read_text())['arguments'] == ['fine', str(tmp_path / 'ran.txt')]


def test_a_point_of_a_group_whose_need_failed(run, tmp_path, monkeypatch):
  monkeypatch.setattr(runner, '_TOGETHER_COMMAND', ('-c', TOGETHER))
  needs = {'b': ['x'], 'c': ['y'], 'd': ['y']}
  points = {'x': 'fail', 'y': 'fine', 'b': 'one', 'c': 'two', 'd': 'three'}
  statuses, _ = run(2, needs, kinds=dict.fromkeys('bcd', 'k'), together=3, **points)
  assert ran(tmp_path)[-1] == 'two+three'
  assert (statuses['b'], statuses['c'], statuses['d']) == ('not run', 'finished', 'finished')
