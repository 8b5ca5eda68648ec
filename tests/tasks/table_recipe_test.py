"""What makes examples of a table: guesses, and what is said where none can be made."""

import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from switch_jax.tasks.table_recipe import find_files, make_recipe

from switch_jax.config import ConfigError, TableConfig
from switch_jax.data.text_lines import EncodingError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(sys.modules, 'datasets', None)  # cannot be imported


def write(name, text):
  with open(name, 'w') as file:
    file.write(text)


def recipe(files='*.csv', **fields):
  return make_recipe(TableConfig(files=files, **fields))


def refused(said, error=ConfigError, **fields):
  with pytest.raises(error, match=said) as caught:
    recipe(**fields)
  assert '\n' not in str(caught.value)


def test_what_is_guessed_is_said():
  write('a.csv', 'id,text,label\n1,a,x\n')
  found = recipe()
  assert (found.template, found.target) == ('{text}', 'label')
  assert found.guessed == ('TARGET_COLUMN=label', 'INPUT_COLUMN=text')
  found = recipe(template='{id}: {text}', target_column='label')
  assert (found.template, found.guessed) == ('{id}: {text}', ())
  found = recipe(input_column='id', labels=('no', 'yes'))
  assert (found.template, found.guessed) == ('{id}', ('TARGET_COLUMN=label',))
  assert found.labels == {'no': 'no', 'yes': 'yes', '0': 'no', '1': 'yes'}
  assert recipe(labels={0: 'no', 5: 'yes'}).labels == {'0': 'no', '5': 'yes'}
  assert recipe(labels=('1', '2')).labels == {'1': '1', '2': '2'}


def test_columns_that_are_not_there():
  write('a.csv', 'id,premise,hypothesis,label\n1,a,b,x\n')
  refused(r"has the columns 'id', 'premise', .*, and which are the inputs cannot be guessed; set --gin\.INPUT_COLUMN")
  refused(r"TARGET_COLUMN asks for the column 'lable', which a\.csv .*Did you mean 'label'", target_column='lable')
  refused(r"TEMPLATE asks for the column 'premis', which a\.csv does not have; its", template='{premis} {hypothesis}')
  refused(r'TEMPLATE is .*, which cannot be read', template='{premise')
  refused(r"the column 'label' is both inputs and targets", input_column='label')
  write('a.csv', 'a,b,c\n1,2,3\n')
  refused(r"a\.csv has the columns 'a', 'b', 'c', and none has a name that targets usually have")
  write('a.csv', 'text,label\n1,2\n')
  write('b.csv', 'text,class\n1,2\n')
  refused(r"TARGET_COLUMN asks for the column 'label', which b\.csv does not have; its columns are 'text', 'class'")


def test_parquet_files_of_another_schema():
  pq.write_table(pa.table({'text': ['a'], 'label': [1]}), 'a.parquet')
  pq.write_table(pa.table({'text': ['a'], 'label': pa.array([1], pa.int8())}), 'b.parquet')
  assert len(recipe(files='*.parquet').train) == 2
  pq.write_table(pa.table({'text': ['a'], 'label': ['x']}), 'c.parquet')
  refused(
    r"c\.parquet has another schema than a\.parquet: its column 'label' is string and not int64; write them alike",
    files='*.parquet',
  )


def test_all_files_that_are_no_utf8_text_are_named_at_once():
  write('a.csv', 'text,label\na,b\n')
  for name, encoding in (('b.csv', 'latin-1'), ('c.csv', 'utf-16')):
    with open(name, 'wb') as file:
      file.write('täxt,label\na,b\n'.encode(encoding))
  refused(r'2 files are no UTF-8 text; b\.csv is not UTF-8: byte 0xe4 at offset 1; .* Likewise c\.csv\.', EncodingError)


def test_files_that_are_not_there():
  refused(r"TableConfig\.files is 'no/\*\.csv', which matches no file .* --gin\.TASK_FILES=", files='no/*.csv')
  refused(r"'imdb', .* no such file or folder.*save_to_disk\('/some/dir'\).*--gin\.TASK_FILES=/some/dir", files='imdb')
  refused(r"load_dataset\('stanfordnlp/imdb'\)\.save_to_disk", files='hf://datasets/stanfordnlp/imdb')
  os.mkdir('folder')
  refused(r'a folder; name the files in it: folder/\*\.csv', files='folder')
  write('a.txt', 'text')
  refused(r'only \.csv, \.tsv, \.jsonl, \.parquet and \.arrow files are read', files='a.txt')
  write('a.csv', '')
  refused(r'its 1 file\(s\) are empty', files='a.csv')
  write('a.csv', 'text,label\na,b\n')
  refused(r"validation_files is 'b\.csv', .*--gin\.VALIDATION_FILES=", files='a.csv', validation_files='b.csv')


def test_splits_of_a_folder_of_datasets(tmp_path):
  for split in ('train', 'validation', 'test'):
    (tmp_path / 'saved' / split).mkdir(parents=True)
    (tmp_path / 'saved' / split / 'data.arrow').write_text(split)
    (tmp_path / 'saved' / split / 'state.json').write_text('{"_data_files": [{"filename": "data.arrow"}]}')
  (tmp_path / 'saved' / 'dataset_dict.json').write_text(json.dumps({'splits': ['train', 'validation', 'test']}))

  def found(**fields):
    return [[path.parent.name for path in files] for files in find_files(TableConfig(**fields))]

  assert found(files='saved') == [['train'], ['validation']]
  assert found(files='saved', validation_files='saved/test') == [['train'], ['test']]
  assert found(files='saved/train') == [['train'], []]
  (tmp_path / 'saved' / 'dataset_dict.json').write_text(json.dumps({'splits': ['test']}))
  with pytest.raises(ConfigError, match=r'saved has the splits test and no train; name one: saved/test'):
    found(files='saved')
