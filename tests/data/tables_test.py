"""Tables as they come: what a row is, and what is said of files that are none."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from switch_jax.config import ConfigError
from switch_jax.data import tables
from switch_jax.data.text_lines import EncodingError


def rows(path):
  return [(row.number, row.cells or row.error) for row in tables.read_rows(epath.Path(path))]


def write(path, text):
  path.write_bytes(text.encode() if isinstance(text, str) else text)
  return epath.Path(path)


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('a.csv', '\ufefftext,label\r\n"a, ""b""\r\nc",x\r\n\r\nd,y\r\n'),
    ('a.csv', 'text;label\n"a, ""b""\nc";x\n\nd;y'),
    ('a.tsv', 'text\tlabel\n"a, ""b""\nc"\tx\n\nd\ty\n'),
  ],
)
def test_cells_with_delimiters_quotes_and_newlines(tmp_path, name, text):
  path = write(tmp_path / name, text)
  assert tables.read_columns(path) == {'text': '', 'label': ''}
  assert rows(path) == [(3, {'text': 'a, "b"\nc', 'label': 'x'}), (5, {'text': 'd', 'label': 'y'})]


def test_an_index_without_a_name_is_a_column(tmp_path):
  path = write(tmp_path / 'a.csv', ',text,label\n0,a,x\n')
  assert rows(path) == [(2, {'column 1': '0', 'text': 'a', 'label': 'x'})]


def test_long_cells_are_read(tmp_path):
  path = write(tmp_path / 'a.csv', f'text\n{"word " * 100_000}\n')
  assert len(rows(path)[0][1]['text']) == 500_000


def test_what_is_no_csv(tmp_path):
  torn = write(tmp_path / 'a.csv', 'text,label\na\nb,c,d\n')
  assert [(number, said[:44]) for number, said in rows(torn)] == [
    (2, 'has 1 cells, and the header has 2 columns; a'),
    (3, 'has 3 cells, and the header has 2 columns; a'),
  ]
  for text, said in (
    ('', r'a\.csv is empty; its first line must name the columns'),
    ('\n \n', r'a\.csv is empty'),
    ('a,b,a\n1,2,3\n', r"has the column 'a' twice"),
    ('text\n"a\nb\n', r'a\.csv:3 is no CSV \(unexpected end of data\)'),
    ('text\n"a"b\n', r"a\.csv:2 is no CSV \('[,\w' ]+ expected after '\"'\)"),
  ):
    with pytest.raises(ConfigError, match=said):
      rows(write(tmp_path / 'a.csv', text))
  for raw in ('Ärger,1'.encode('latin-1'), 'text,label\n'.encode('utf-16')):
    with pytest.raises(EncodingError, match=r'a\.csv is '):
      rows(write(tmp_path / 'a.csv', raw))


def test_rows_of_json_lines(tmp_path):
  path = write(tmp_path / 'a.jsonl', '{"text": "a", "label": 1}\n\n{"text":\n[1]\n{"text": "b", "label": NaN}\n')
  assert list(tables.read_columns(path)) == ['text', 'label']
  first, torn, listed, last = rows(path)
  assert first == (1, {'text': 'a', 'label': 1})
  assert torn[1].startswith('is not JSON (')
  assert listed == (4, 'is [1] and no object')
  assert last[0] == 5
  with pytest.raises(ConfigError, match=r'a\.jsonl has no row'):
    tables.read_columns(write(tmp_path / 'a.jsonl', '\n'))
  with pytest.raises(ConfigError, match=r'a\.jsonl:1 is 5 and no object; each line must be an object'):
    tables.read_columns(write(tmp_path / 'a.jsonl', '5\n'))


def with_class_label(**columns):
  """Returns a table as the library `datasets` makes it, whose labels are numbers of names."""
  features = {
    'text': {'dtype': 'string', '_type': 'Value'},
    'label': {'names': ['neg', 'pos'], '_type': 'ClassLabel'},
  }
  table = pa.table(columns)
  return table.replace_schema_metadata({'huggingface': json.dumps({'info': {'features': features}})})


@pytest.mark.parametrize('remote', [False, True])
def test_rows_of_parquet_and_what_is_none(tmp_path, monkeypatch, remote):
  monkeypatch.setattr(tables, 'is_remote', lambda path: remote)  # objects of a bucket are wrapped
  table = with_class_label(text=['a', None, 'c'], label=[0, 1, -1])
  pq.write_table(table, tmp_path / 'a.parquet')
  path = epath.Path(tmp_path / 'a.parquet')
  assert tables.read_columns(path) == {'text': 'string', 'label': 'int64'}
  assert [cells for _, cells in rows(path)] == [
    {'text': 'a', 'label': 'neg'},
    {'text': None, 'label': 'pos'},
    {'text': 'c', 'label': None},
  ]
  with pytest.raises(ConfigError, match=r'b\.parquet cannot be read as parquet \(.*\); write it again'):
    rows(write(tmp_path / 'b.parquet', 'text,label\n'))
  with pytest.raises(ConfigError, match=r'b\.parquet cannot be read as parquet'):
    rows(write(tmp_path / 'b.parquet', path.read_bytes()[:-20]))


def test_folders_that_datasets_has_saved(tmp_path):
  folder = epath.Path(tmp_path / 'saved')
  (folder / 'train').mkdir(parents=True)
  (folder / 'dataset_dict.json').write_text('{"splits": ["train"]}')
  names = ['data-00000-of-00002.arrow', 'data-00001-of-00002.arrow']
  for name, text in zip(names, 'ab', strict=True):
    table = with_class_label(text=[text], label=[1])
    with pa.OSFile(str(folder / 'train' / name), 'wb') as file, pa.ipc.new_stream(file, table.schema) as writer:
      writer.write_table(table)
  state = {'_data_files': [{'filename': name} for name in names]}
  (folder / 'train' / 'state.json').write_text(json.dumps(state))
  assert tables.split_folders(folder) == ['train']
  assert tables.split_folders(folder / 'train') is None
  files = tables.arrow_files(folder / 'train')
  assert [rows(path) for path in files] == [[(1, {'text': text, 'label': 'pos'})] for text in 'ab']
  with pytest.raises(ConfigError, match=r'saved is a folder that the library datasets has not saved .*saved/\*\.csv'):
    tables.arrow_files(folder)
  (folder / 'train' / 'state.json').write_text(json.dumps(state | {'_indices_data_files': [{}]}))
  with pytest.raises(ConfigError, match=r'save it with flatten_indices\(\)'):
    tables.arrow_files(folder / 'train')
  write(tmp_path / 'torn.arrow', files[0].read_bytes()[:100])
  with pytest.raises(ConfigError, match=r'torn\.arrow cannot be read as arrow'):
    rows(tmp_path / 'torn.arrow')
  for listing in ('{"splits": ', '{}', '5'):
    (folder / 'dataset_dict.json').write_text(listing)
    with pytest.raises(ConfigError, match=r'dict\.json does not list the splits .* name a split: .*saved/train'):
      tables.split_folders(folder)


def test_what_is_read_as_a_table():
  names = ('a.csv', 'a.tsv', 'a.parquet', 'a.arrow', 'a.jsonl', 'a.txt', 'a')
  assert [tables.is_table(epath.Path(name)) for name in names] == [True] * 4 + [False] * 3
