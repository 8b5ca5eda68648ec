"""Lines by step: what counts, what is reported, and what a kill leaves."""

import json
import math
import os

import pytest
from etils import epath

from switch_jax.folders.metric_lines import LineWriter, read_lines, read_metrics


@pytest.fixture
def path(tmp_path):
  return epath.Path(tmp_path / 'metrics.jsonl')


def steps(path):
  return [record['step'] for record in read_metrics(path)]


def test_no_file_reads_as_nothing(path):
  found = read_lines(path)
  assert (found.records, found.damaged, found.torn) == ([], [], False)
  path.write_bytes(b'')
  assert not read_lines(path).torn


def test_null_is_no_number(path):
  path.write_text('{"step": 1, "loss": null}\n')
  assert math.isnan(read_metrics(path)[0]['loss'])


@pytest.mark.parametrize(
  'line',
  [
    b'\x00\xff', b'\xff\xfe{\x00', b'{"step": 2, "text": "\xe9"}', b'', b'[1]', b'2', b'null', b'{"loss": 1}',
    b'{"step"', b'{"step": 2.0}', b'{"step": true}', b'{"step": "2"}', b'{"step": null}', b'[' * 100_000,
  ],
)  # fmt: skip
def test_a_line_that_does_not_count_is_left_out_and_numbered(path, line):
  path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n' + line + b'\n')
  found = read_lines(path)
  assert [record['step'] for record in found.records] == [1, 3]
  assert (found.damaged, found.torn) == ([2, 4], False)


@pytest.mark.parametrize('end', [b'{"step": 2, "lo', b'{"step": 2, "loss": 1.25}', b'\xff'])
def test_a_torn_last_line_is_left_out_and_reported(path, end):
  path.write_bytes(b'{"step": 1}\n' + end)
  found = read_lines(path)
  assert (found.records, found.damaged, found.torn) == ([{'step': 1}], [], True)


def test_separators_of_unicode_are_no_ends_of_lines(path):
  path.write_text('{"step": 1, "text": "a\u2028b\x85"}\n')
  assert read_metrics(path) == [{'step': 1, 'text': 'a\u2028b\x85'}]


def test_cut_leaves_whole_lines_as_they_are(path):
  path.write_bytes(b'{"step": 1,  "x": 1.50}\n\xff\n{"step": 2}\n{"step": 3}\n{"st')
  writer = LineWriter(path)
  writer.cut()
  assert path.read_bytes() == b'{"step": 1,  "x": 1.50}\n{"step": 2}\n{"step": 3}\n'
  assert writer.last_step == 3
  writer.cut(1)
  assert path.read_bytes() == b'{"step": 1,  "x": 1.50}\n'
  assert writer.last_step == 1
  writer.cut(-1)
  assert path.read_bytes() == b''
  assert writer.last_step is None


def test_nothing_to_cut_leaves_the_file_alone(path):
  LineWriter(path).cut(5)
  assert not path.exists()
  path.write_text('{"step": 1}\n')
  before = os.stat(path).st_ino
  LineWriter(path).cut(1)
  assert os.stat(path).st_ino == before


def test_append_replaces_the_last_step_and_refuses_an_earlier_one(path):
  writer = LineWriter(path)
  writer.append(1, {'loss': 1.0})
  writer.append(2, {'loss': math.nan, 'low': -math.inf})
  assert path.read_text() == '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": null, "low": null}\n'
  writer.append(2, {'loss': 3.0})
  assert read_metrics(path) == [{'step': 1, 'loss': 1.0}, {'step': 2, 'loss': 3.0}]
  with pytest.raises(ValueError, match='ends with step 2'):
    writer.append(1, {})


def test_merge_takes_steps_in_any_order_and_adds_to_a_line(path):
  writer = LineWriter(path)
  for step in (20, 10, 30):
    writer.merge(step, {'accuracy': float(step)})
  writer.merge(20, {'accuracy': math.nan, 'accuracy/capacity_1.0': 5.0})
  assert [json.loads(line) for line in path.read_text().splitlines()] == [
    {'step': 10, 'accuracy': 10.0},
    {'step': 20, 'accuracy': None, 'accuracy/capacity_1.0': 5.0},
    {'step': 30, 'accuracy': 30.0},
  ]
  writer.merge(10, {'f1': 1.0})  # null stays null
  assert steps(path) == [10, 20, 30]
  assert json.loads(path.read_text().splitlines()[1])['accuracy'] is None


@pytest.mark.parametrize('change', [lambda w: w.cut(1), lambda w: w.merge(2, {'x': 1})])
def test_a_kill_while_replacing_leaves_the_old_file(path, monkeypatch, change):
  path.write_text('{"step": 1}\n{"step": 2}\n')
  for name in ('replace', 'rename'):
    monkeypatch.setattr(os, name, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
  with pytest.raises(KeyboardInterrupt):
    change(LineWriter(path))
  assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
