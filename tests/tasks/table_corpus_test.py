"""Rows as a corpus: what is held out, and what is said of rows that are no examples."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from switch_jax.tasks.table_corpus import SEPARATOR, get_corpus, get_text_corpus

from switch_jax.config import ConfigError, TableConfig
from switch_jax.data import corpus
from switch_jax.data.text_lines import EncodingError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """A cache and a working directory of this test's own."""
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.chdir(tmp_path)


def write(name, *rows, header='text,label'):
  with open(name, 'w', newline='') as file:
    file.write('\n'.join([header, *rows]) + '\n')


def pairs(split, files='a.csv', **fields):
  """Returns the pairs of texts of a split."""
  made, _ = get_corpus(TableConfig(files=files, **fields))
  return [tuple(line.split(SEPARATOR)) for line in made.paragraphs(split)]


def refused(said, error=ConfigError, **fields):
  with pytest.raises(error, match=said) as caught:
    get_corpus(TableConfig(**({'files': 'a.csv'} | fields)))
  assert '\n' not in str(caught.value)


def test_equal_inputs_are_on_one_side_and_none_is_lost():
  write('a.csv', *(f'text {i % 400},{i % 3}' for i in range(800)))
  train, held_out = pairs(corpus.TRAIN), pairs(corpus.VALIDATION)
  assert sorted(train + held_out) == sorted((f'text {i % 400}', str(i % 3)) for i in range(800))
  assert 0.05 < len(held_out) / 800 < 0.2
  assert not {inputs for inputs, _ in train} & {inputs for inputs, _ in held_out}
  assert len(pairs(corpus.VALIDATION, held_out_fraction=0.5)) > 2 * len(held_out)


def test_of_few_rows_some_are_held_out_all_the_same():
  for number in (2, 3, 12):
    write('a.csv', *(f'{number} {i},{i}' for i in range(number)))
    assert len(pairs(corpus.VALIDATION)) == 1
  write('a.csv', *(['same,x'] * 5))
  refused('has only one input in its 5 rows, so none can be held out')
  write('a.csv')
  refused(r'a\.csv has no row with inputs and a target')


def test_rows_are_held_out_by_file():
  write('a.csv', 'a,x', 'b,y')
  write('b.csv', 'c,x')
  assert pairs(corpus.TRAIN, validation_files='b.csv') == [('a', 'x'), ('b', 'y')]
  assert pairs(corpus.VALIDATION, validation_files='b.csv') == [('c', 'x')]
  write('b.csv')
  refused('the files of validation_files have no row', validation_files='b.csv')


def test_newlines_are_kept_and_labels_are_named():
  write('a.csv', '"a\nb\t",0', 'c,1', header='text,label')
  found = pairs(corpus.TRAIN, labels=('no', 'yes'), template='on: {text}')
  found += pairs(corpus.VALIDATION, labels=('no', 'yes'), template='on: {text}')
  assert sorted(found) == [('on: a\nb', 'no'), ('on: c', 'yes')]


def test_labels_outside_the_set():
  write('a.csv', 'a,negative', 'b,postive', 'c,positive', 'd,5')
  labels = ('negative', 'positive')
  refused(
    r"a\.csv:3 has the label 'postive' in the column 'label' \(and 1 more rows of that kind\); the labels are "
    r"negative, positive\. Did you mean 'positive'\? Mend it, or set LABELS",
    labels=labels,
  )


def test_empty_cells_are_refused_or_left_out():
  write('a.csv', 'a,x', ',x', 'b,', 'c,NaN', 'd,y')
  refused(
    r"a\.csv:3 has nothing \(an empty cell or NaN\) in the column 'text' \(and 2 more rows of that kind\); fill it, or "
    r'leave such rows out: --gin\.SKIP_EMPTY=True'
  )
  found = pairs(corpus.TRAIN, skip_empty=True) + pairs(corpus.VALIDATION, skip_empty=True)
  assert sorted(found) == [('a', 'x'), ('d', 'y')]


def test_rows_that_are_malformed():
  write('a.csv', 'a,x', 'b')
  refused(r'a\.csv:3 has 1 cells, and the header has 2 columns; .*; mend it')
  with open('a.jsonl', 'w') as file:
    file.write('{"text": "a", "label": "x"}\n{"text": ["b"], "label": "x"}\n')
  refused(r"a\.jsonl:2 has in the column 'text' a list, which is no text", files='a.jsonl')
  pq.write_table(pa.table({'text': ['a', None], 'label': [0.5, float('nan')]}), 'a.parquet')
  refused(r"a\.parquet:2 has nothing .* in the column 'text'", files='a.parquet')


def test_all_files_that_are_no_utf8_text_are_named_at_once():
  write('a.csv', 'a,x')
  for name in ('b.csv', 'c.csv'):
    with open(name, 'wb') as file:
      file.write('text,label\nä,x\n'.encode('latin-1'))
  refused(r'2 files are no UTF-8 text; b\.csv is not UTF-8: byte 0xe4 .* Likewise c\.csv', EncodingError, files='*.csv')
  replaced = pairs(corpus.TRAIN, '*.csv', undecodable='replace') + pairs(
    corpus.VALIDATION, '*.csv', undecodable='replace'
  )
  assert ('\ufffd', 'x') in replaced


def test_nothing_is_left_behind_by_a_table_that_is_refused(tmp_path):
  write('a.csv', 'a,')
  refused('has nothing')
  assert not [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()]


def test_the_inputs_are_a_text_of_their_own_with_the_same_split():
  write('a.csv', *(f'text {i},{i % 3}' for i in range(100)))
  table = TableConfig(files='a.csv')
  for split in (corpus.TRAIN, corpus.VALIDATION):
    assert list(get_text_corpus(table).paragraphs(split)) == [inputs for inputs, _ in pairs(split)]


def test_the_same_rows_have_the_same_digest_wherever_they_lie(tmp_path):
  write('a.csv', *(f'text {i},{i % 3}' for i in range(20)))
  (tmp_path / 'b').mkdir()
  (tmp_path / 'b' / 'other.tsv').write_text((tmp_path / 'a.csv').read_text().replace(',', '\t').replace('\n', '\r\n'))
  first, other = (get_corpus(TableConfig(files=files))[0] for files in ('a.csv', 'b/*.tsv'))
  assert first.digest == other.digest
