"""JSON objects that others wrote: one error of one line for whatever they hold."""

import pytest

from switch_jax.config import ConfigError
from switch_jax.folders import checked_json
from switch_jax.folders.checked_json import Fields


@pytest.mark.parametrize(
  ('raw', 'message'),
  [
    (b'', 'is not valid JSON (Expecting value'),
    (b'{"a": 1', 'is not valid JSON (Expecting'),
    (b'{"a": 1, "b": {"c": 1, "c": 2}}', "is not valid JSON (the key 'c' stands in one object twice)"),
    (b'{"\xff": 1}', 'is not valid JSON ('),
    (b'{"a": ' + b'9' * 5000 + b'}', 'is not valid JSON (Exceeds the limit'),
    (b'[' * 100_000, 'is not valid JSON (maximum recursion depth'),
    (b'[1]', 'holds a list; it must be an object'),
    (b' ' * 101, 'has more than 100 bytes'),
  ],
)
def test_what_is_no_object(raw, message):
  with pytest.raises(ConfigError) as caught:
    checked_json.parse(raw, '/c/x.json', 10_000_000 if message.startswith('is') else 100)
  assert str(caught.value).startswith(f'/c/x.json {message}')
  assert '\n' not in str(caught.value)


def test_a_file_is_read_and_one_that_is_not_there_is_said(tmp_path):
  (tmp_path / 'x.json').write_text('{"a": null}')
  assert checked_json.read(tmp_path, 'x.json') == {'a': None}
  with pytest.raises(FileNotFoundError):
    checked_json.read(tmp_path, 'y.json')


VALUES = {
  'n': 5,
  'x': 0.5,
  'yes': True,
  'name': 'a',
  'inner': {'n': 1},
  'shape': [2, 3],
  'nan': float('nan'),
  'no': None,
}


def test_fields_of_the_right_types():
  fields = Fields('f', VALUES)
  assert (fields.integer('n'), fields.number('x'), fields.number('n'), fields.boolean('yes')) == (5, 0.5, 5, True)
  assert (fields.text('name'), fields.object('inner').integer('n'), fields.sizes('shape')) == ('a', 1, (2, 3))
  assert (fields.integer('m', 7), fields.number('m', 0.1), fields.text('m', None)) == (7, 0.1, None)
  assert fields.sizes('m', []) == ()


@pytest.mark.parametrize(
  ('take', 'message'),
  [
    (lambda f: f.integer('m'), 'f has no m; the copy is damaged. Copy it again.'),
    (lambda f: f.integer('yes'), 'f: yes is True; it must be an integer from 0 to'),
    (lambda f: f.integer('n', minimum=6), 'f: n is 5; it must be an integer from 6 to'),
    (lambda f: f.integer('n', maximum=4), 'an integer from 0 to 4'),
    (lambda f: f.number('nan'), 'f: nan is nan; it must be a number of at least 0, so the copy'),
    (lambda f: f.number('x', below=0.5), 'a number of at least 0 and less than 0.5'),
    (lambda f: f.number('no'), 'no is None; it must be a number'),
    (lambda f: f.boolean('n'), 'n is 5; it must be true or false'),
    (lambda f: f.text('n'), 'n is 5; it must be a string'),
    (lambda f: f.object('shape'), 'shape is [2, 3]; it must be an object'),
    (lambda f: f.object('inner').integer('a'), 'f: inner has no a'),
    (lambda f: f.sizes('n'), 'n is 5; it must be a list of sizes'),
  ],
)
def test_fields_of_wrong_types(take, message):
  with pytest.raises(ConfigError) as caught:
    take(Fields('f', VALUES))
  assert message in str(caught.value)


@pytest.mark.parametrize('sizes', [[-1], [2**60], [2**30, 2**30], ['x'], [True], [1] * 40, [1.0], None])
def test_sizes_that_no_array_has(sizes):
  with pytest.raises(ConfigError, match=r'shape is .* it must be a list of sizes'):
    Fields('f', {'shape': sizes}).sizes('shape')


def test_values_are_shown_short_and_in_one_line():
  deep: list = []
  for _ in range(5000):
    deep = [deep]
  assert len(checked_json.shown(deep)) < 100
  assert len(checked_json.shown('x\n' * 10_000)) < 100
  assert '\n' not in checked_json.shown('x\ny')
