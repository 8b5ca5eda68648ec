"""The lines and rows that predictions are made for, and what is said of malformed ones."""

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from switch_jax.config import ConfigError, PredictionConfig
from switch_jax.inference.prediction_inputs import Inputs, Line, check_table, read_line, read_lines


@pytest.mark.parametrize(
  ('text', 'error'),
  [
    ('{"text": "cut', 'no JSON (Unterminated string'),
    ('[1]', 'list in place of an object'),
    ('{"id": 1, "body": "x"}', "no 'text' in it (it has 'id', 'body')"),
    ('{}', "no 'text' in it (it has nothing)"),
    ('{"text": null}', "'text' is null, which is no string"),
    ('[' * 100_000, 'no JSON (it is nested too deeply)'),
    ('{"text": "a", "x": ' + '[' * 100_000, 'no JSON (it is nested too deeply)'),
    ('{"text": "a", "x": ' + '1' * 5000 + '}', 'no JSON (Exceeds the limit'),
    ('"\\ud800"', "half a surrogate pair ('\\ud800'), which no text has"),
    ('{"text": "a", "\\udc00": 1}', "half a surrogate pair ('\\udc00'), which no text has"),
    ('{"text": "a", "x": NaN}', 'no JSON (NaN is no JSON value)'),
    ('{"text": "a", "x": 1e999}', 'no JSON (Out of range float values'),
    ('{"text": "a", "score": 1}', "it has 'score', which would be overwritten; choose another name"),
    ('{"text": "a", "was_cut": 1, "prediction": 2}', "it has 'prediction', 'was_cut', which would be overwritten"),
  ],
)
def test_what_is_wrong_with_a_line(text, error):
  line = read_line(7, text, Inputs('text'), ('prediction', 'score', 'was_cut'))
  assert (line.number, line.record) == (7, None)
  assert line.error.startswith(error)


def test_lines_keep_their_numbers_and_blank_ones_are_passed_over(tmp_path):
  (tmp_path / 'in.jsonl').write_bytes('{"text": "ä", "id": 5}\n\n \t\n"bare"\n"\xe9"'.encode('latin-1'))
  torn, bare, latin = read_lines(epath.Path(tmp_path / 'in.jsonl'), Inputs('text'))
  assert torn.error.startswith('no UTF-8 (')
  assert (torn.number, torn.record) == (1, None)
  assert bare == Line(4, {'text': 'bare'}, 'bare')
  assert latin.number == 5
  replaced = list(read_lines(epath.Path(tmp_path / 'in.jsonl'), Inputs('text', undecodable='replace')))
  assert [line.text for line in replaced] == ['\ufffd', 'bare', '\ufffd']
  (tmp_path / 'in.jsonl').write_text('{"text": "ä", "id": 5}\n')
  assert list(read_lines(epath.Path(tmp_path / 'in.jsonl'), Inputs('text'))) == [Line(1, {'text': 'ä', 'id': 5}, 'ä')]


def test_a_byte_order_mark_is_passed_over_and_a_whole_pair_is_kept(tmp_path):
  (tmp_path / 'in.jsonl').write_bytes(b'\xef\xbb\xbf"a"\n"\\ud83d\\ude00"\n\xef\xbb\xbf"b"\n')
  first, pair, inside = read_lines(epath.Path(tmp_path / 'in.jsonl'), Inputs('text'))
  assert (first.text, pair.text) == ('a', '\U0001f600')
  assert inside.error.startswith('no JSON (')
  (tmp_path / 'in.jsonl').write_bytes(b'\xef\xbb\xbf\n"a"\n')
  assert [line.number for line in read_lines(epath.Path(tmp_path / 'in.jsonl'), Inputs('text'))] == [2]


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_lines_end_as_in_training(tmp_path, end):
  (tmp_path / 'in.jsonl').write_bytes(end.join(['{"text": "a"}', '', '"b\\rc"', '{"text":']).encode())
  first, second, torn = read_lines(epath.Path(tmp_path / 'in.jsonl'), Inputs('text'))
  assert (first.number, first.text) == (1, 'a')
  assert (second.number, second.text) == (3, 'b\rc')
  assert (torn.number, torn.record) == (4, None)


def config(**fields):
  return PredictionConfig(model_dir='m', input_file='i', output_file='o', batch_size=1, **fields)


def test_what_is_configured_comes_before_what_the_checkpoint_records():
  assert Inputs.of(config(), None) == Inputs('inputs')
  assert Inputs.of(config(), '{text}') == Inputs('inputs', '{text}')
  assert Inputs.of(config(inputs_key='body'), '{text}') == Inputs('body')
  assert Inputs.of(config(template='a {b}'), '{text}') == Inputs('inputs', 'a {b}', is_asked_for=True)
  with pytest.raises(ConfigError, match=r"TEMPLATE is 'a \{b', which cannot be read"):
    Inputs.of(config(template='a {b'), None)
  with pytest.raises(ConfigError, match='which names the columns itself; leave one of them out'):
    config(template='a {b}', inputs_key='b')


def test_a_template_makes_the_inputs_of_an_object():
  inputs = Inputs(template='on {title}: {text}')
  assert read_line(1, '{"text": " a\\r\\nb ", "title": 5}', inputs).text == 'on 5: a\nb'
  assert read_line(1, '{"inputs": "as it is", "text": "x"}', inputs).text == 'as it is'
  assert read_line(1, '"bare"', inputs).text == 'bare'
  assert read_line(1, '{"text": "a", "title": ""}', inputs).error == "nothing in 'title'"
  assert read_line(1, '{"text": [1], "title": "b"}', inputs).error == "'text' is a list, which is no text"
  said = "no 'inputs' and no 'title' (the inputs are 'on {title}: {text}') in it (it has 'text')"
  assert read_line(1, '{"text": "a"}', inputs).error == said
  assert read_line(1, '{"inputs": "a"}', Inputs(template='{text}', is_asked_for=True)).error.startswith(
    "no 'text' in it"
  )


def test_rows_of_a_csv_file(tmp_path):
  (tmp_path / 'in.csv').write_text('id,text\n1,"two\nlines"\n2\n3,\n4,"a, b"\n')
  path, inputs = epath.Path(tmp_path / 'in.csv'), Inputs(template='say {text}')
  check_table(path, inputs, ('prediction',))
  first, torn, empty, last = read_lines(path, inputs)
  assert first == Line(3, {'id': '1', 'text': 'two\nlines'}, 'say two\nlines')
  assert torn.error.startswith('has 1 cells, and the header has 2 columns')
  assert (torn.record, empty.record, empty.error) == (None, None, "nothing in 'text'")
  assert last.text == 'say a, b'
  with pytest.raises(
    ConfigError, match=r"in\.csv has no 'inputs' among its columns 'id', 'text'; set --gin\.INPUTS_KEY"
  ):
    check_table(path, Inputs(), ())
  with pytest.raises(ConfigError, match=r"in\.csv has no 'title' among its columns 'id', 'text'"):
    check_table(path, Inputs(template='{title}', is_asked_for=True), ())
  with pytest.raises(
    ConfigError, match=r"has the column 'id', which would be overwritten; set --gin\.PREDICTION_FIELD"
  ):
    check_table(path, inputs, ('id', 'score'))


def test_rows_of_a_parquet_file_are_written_as_json_can(tmp_path):
  day = datetime.date(2020, 1, 2)
  cells = {'text': ['a', None], 'day': [day, day], 'x': [float('nan'), 1.5], 'many': [[1], []]}
  pq.write_table(pa.table(cells), tmp_path / 'in.parquet')
  first, empty = read_lines(epath.Path(tmp_path / 'in.parquet'), Inputs(template='{text}'))
  assert first == Line(1, {'text': 'a', 'day': '2020-01-02', 'x': None, 'many': [1]}, 'a')
  assert empty.error == "nothing in 'text'"
