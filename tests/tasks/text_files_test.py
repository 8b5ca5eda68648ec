"""The user's own text: what is read, what is held out, and what is said when it cannot be."""

import dataclasses
import itertools
import json
import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.short_texts import make_text
from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import corpus, make_vocabulary, read_held_out
from switch_jax.tasks import text_files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """A cache of this test's own."""
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.chdir(tmp_path)


def config(pattern, batch_size=2, lengths=None):
  """Returns a configuration that reads a pattern."""
  return DataConfig(
    mixture_or_task_name=text_files.NAME,
    feature_lengths=lengths or {'inputs': 32, 'targets': 16},
    batch_size=batch_size,
    text_files=pattern,
  )


def refused(pattern, match, **kwargs):
  """Checks that a pattern is refused with a message."""
  with pytest.raises(ConfigError, match=match):
    text_files.register(config(pattern, **kwargs))


def test_paragraphs_of_a_text_file(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'\xef\xbb\xbfFirst line\r\nsecond line\r\n \t\r\n\r\nNext \xc3\xa9\n\n\nLast')
  assert list(text_files.read_txt(tmp_path / 'a.txt')) == ['First line\nsecond line', 'Next é', 'Last']


def test_long_paragraphs_are_cut_and_nothing_is_lost(tmp_path):
  words = ' '.join(f'wörd{i}' for i in range(9000))  # one line of about 90 kB
  lines = '\n'.join(f'line {i} of a long paragraph' for i in range(3000))
  (tmp_path / 'a.txt').write_text(f'{words}\n\n{lines}\n\n{"é" * 20000}')
  pieces = list(text_files.read_txt(tmp_path / 'a.txt'))
  assert max(len(piece.encode()) for piece in pieces) <= corpus.MAX_PARAGRAPH_BYTES
  assert len(pieces) < 25
  text = ' '.join(piece.replace('\n', ' ') for piece in pieces)
  assert text.replace(' ', '') == f'{words}{lines}{"é" * 20000}'.replace(' ', '').replace('\n', '')
  assert words in text  # cut between words


def test_documents_of_a_jsonl_file(tmp_path):
  lines = [json.dumps({'text': 'One\n\ndocument', 'id': 1}), '', json.dumps({'text': ' '}), '{"text": "\\ud800 x"}']
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  assert list(text_files.read_jsonl(tmp_path / 'a.jsonl')) == ['One\n\ndocument', '? x']


def test_documents_of_a_parquet_file_beside_others(tmp_path):
  pq.write_table(pa.table({'text': ['One\r\ndocument', None, ' '], 'id': [1, 2, 3]}), tmp_path / 'a.parquet')
  (tmp_path / 'b.txt').write_text('A paragraph.\n\nAnother.')
  files = text_files.find_files(str(tmp_path / '*'))
  assert [text for path in files for text in text_files.read_file(path)] == [
    'One\ndocument',
    'A paragraph.',
    'Another.',
  ]
  pq.write_table(pa.table({'text': [1]}), tmp_path / 'a.parquet')
  refused('a.parquet', r'a\.parquet:1 has no text: its "text" is 1, which is no string')
  pq.write_table(pa.table({'body': ['a']}), tmp_path / 'a.parquet')
  refused('a.parquet', r"asks for the column 'text', which a\.parquet does not have; its columns are 'body'")


def test_all_files_that_are_no_utf8_are_named_at_once(tmp_path):
  for name, raw in (('a.txt', b'fine'), ('b.txt', b'\xc4'), ('c.txt', b'\xff\xfea\0'), ('d.jsonl', b'"\xe4"')):
    (tmp_path / name).write_bytes(raw)
  refused('*.*', r'3 files are no UTF-8 text; b\.txt is not UTF-8: byte 0xc4 .* Likewise c\.txt, d\.jsonl\.$')


def test_held_out_paragraphs_are_never_trained_on(tmp_path):
  paragraphs = [f'A paragraph about the number {i % 900}, one of many.' for i in range(1800)]  # each one twice
  (tmp_path / 'a.txt').write_text('\n\n'.join(paragraphs[:1000]))
  records = [json.dumps({'text': text}) for text in paragraphs[1000:]]
  (tmp_path / 'b.jsonl').write_text('\n'.join(records))
  made = text_files.get_corpus(str(tmp_path / '*.*'))
  train, held_out = (list(made.paragraphs(split)) for split in ('train', 'validation'))
  assert len(train) + len(held_out) == 1800
  assert not set(train) & set(held_out)
  # 65,536 bytes would be most of such a small text: a tenth is held out.
  assert 0.06 < len(held_out) / 1800 < 0.14


def test_pieces_of_a_document_share_its_split(tmp_path):
  documents = [' '.join(f'{i}:{j}' for j in range(4000)) for i in range(40)]  # two or three pieces each
  (tmp_path / 'a.jsonl').write_text('\n'.join(json.dumps({'text': text}) for text in documents))
  made = text_files.get_corpus(str(tmp_path / 'a.jsonl'))
  split = {}
  for name in ('train', 'validation'):
    split[name] = {piece.split(':')[0] for piece in made.paragraphs(name)}
  assert split['train'] | split['validation'] == {str(i) for i in range(40)}
  assert split['validation']
  assert not split['train'] & split['validation']


def test_no_pattern_and_no_match(tmp_path):
  refused(None, 'text_files is None; .* set --gin.TEXT_FILES=')
  refused('no/such/*.txt', rf"is 'no/such/\*.txt', which matches no file from the working directory {tmp_path}")
  (tmp_path / 'folder').mkdir()
  refused('folder', r'a folder; name the files in it: folder/\*\.txt')


def test_files_of_other_kinds(tmp_path):
  (tmp_path / 'a.csv').write_text('text')
  refused('*.csv', r'matches a\.csv; only \.txt, \.jsonl and \.parquet files are read')
  (tmp_path / 'a.txt').write_text('')
  refused('*.txt', r'1 file\(s\) are empty')
  (tmp_path / 'gone.txt').symlink_to('nowhere')
  refused('gone.txt', r'gone\.txt cannot be read')


def test_what_is_not_utf8(tmp_path):
  (tmp_path / 'a.txt').write_bytes('Good line\nÄrger'.encode('latin-1'))
  refused('a.txt', r'a\.txt is not UTF-8: byte 0xc4 at offset 10; convert it')
  (tmp_path / 'b.txt').write_text('\n\n'.join(f'Paragraph number {i} of this text.' for i in range(100)))
  made = text_files.get_corpus('*.txt', 'replace')
  assert 'Good line<n>\ufffdrger' in ' '.join(p.replace('\n', '<n>') for p in made.paragraphs(corpus.TRAIN))
  (tmp_path / 'c.txt').write_text('Others', encoding='utf-16')
  with pytest.raises(ConfigError, match=r'^c\.txt is UTF-16'):  # and no word of what is replaced
    text_files.get_corpus('*.txt', 'replace')


def test_what_is_not_json(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "fine"}\n{"text": "cut\n')
  refused('a.jsonl', r'a\.jsonl:2 is not JSON \(Unterminated string')
  (tmp_path / 'b.jsonl').write_text('{"text": "fine"}\n\n{"body": "what", "id": 3}\n')
  refused('b.jsonl', r"b\.jsonl:3 has no text: it is an object with 'body', 'id'; .* field \"text\" is a string")
  (tmp_path / 'c.jsonl').write_text('["text"]\n')
  refused('c.jsonl', r"c\.jsonl:1 has no text: it is \['text'\]")


@pytest.mark.parametrize(
  ('line', 'said'),
  [
    ('{"text": null}', 'has no text: its "text" is null; each line must'),
    ('{"text": 5.0}', r'has no text: its "text" is 5\.0, which is no string'),
    ('{"text": true}', 'has no text: its "text" is true, which is no string'),
    ('{"text": ["a", null]}', r'has no text: its "text" is \["a", null\], which is no string'),
    ('{}', 'has no text: it is an object with nothing in it'),
    ('null', 'has no text: it is None'),
    ('[' * 100_000, 'is no JSON that can be read: it is nested too deeply'),
    ('{"text": "a", "x": ' + '[' * 100_000, 'is no JSON that can be read: it is nested too deeply'),
    ('{"text": "a"', r'is not JSON \(Expecting'),
  ],
)
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_each_line_that_has_no_text_is_named_with_its_cause(tmp_path, line, said, end):
  (tmp_path / 'a.jsonl').write_bytes(end.join(['{"text": "fine"}', '', line, '{"text": "fine"}']).encode())
  refused('a.jsonl', rf'a\.jsonl:3 {said}')


def test_other_encodings_are_named(tmp_path):
  for suffix, text in (('txt', 'A line.\nAnd another line.\n'), ('jsonl', '{"text": "a b"}\n{"text": "c"}\n')):
    path = tmp_path / f'a.{suffix}'
    path.write_bytes(text.encode('utf-16'))
    refused(path.name, rf'a\.{suffix} is UTF-16, as its byte order mark says, and only UTF-8 is read')
    path.write_bytes(text.encode('utf-16-le'))
    refused(path.name, rf'a\.{suffix} is UTF-16LE, as the places')


def test_a_name_that_looks_like_a_pattern(tmp_path):
  (tmp_path / 'report[1].txt').write_text('text')
  assert [path.name for path in text_files.find_files('report[1].txt')] == ['report[1].txt']


def test_only_regular_files_are_opened(tmp_path):
  os.mkfifo(tmp_path / 'a.txt')  # would wait for a writer for ever
  refused('a.txt', r'a\.txt is no regular file')


def test_too_little_text_for_a_row(tmp_path):
  (tmp_path / 'a.txt').write_text('\n'.join(f'Line {i}.' for i in range(100)))
  row = r'bytes of text, \d+ of them to train on and \d+ held out; a row of TASK_FEATURE_LENGTHS takes 1136 bytes; '
  refused('a.txt', row + r'use more text \(about 2272 bytes do\) or shorter', lengths={'inputs': 1024, 'targets': 228})
  # What is said to do does; that less than a batch is held out is no matter.
  (tmp_path / 'a.txt').write_text(''.join(f'Line {i:04}.\n' for i in range(228)))
  text_files.register(config('a.txt', 64, {'inputs': 1024, 'targets': 228}))


def test_too_little_text_to_hold_any_out(tmp_path):
  for text in ('one line of a few words', '{"text": "a"}'):
    suffix = 'jsonl' if '{' in text else 'txt'
    (tmp_path / f'a.{suffix}').write_text(text)
    refused(f'a.{suffix}', r'its \d+ bytes of text are too few for a part that is held out; about 512 bytes do')
  (tmp_path / 'a.txt').write_text(' '.join(f'w{i}' for i in range(140)))  # 512 bytes in one line
  text_files.register(config('a.txt'))


def test_equal_lines_are_blamed_and_not_the_split(tmp_path):
  line = 'The same line again and again.'
  for text in ('\n'.join([line] * 20_000), '\n\n'.join([line] * 20_000)):
    (tmp_path / 'a.txt').write_text(text)
    refused(
      'a.txt', r"its 20,000 lines, .* are all equal \('The same .*other text is 0 bytes; at least \d+ bytes of other"
    )
  (tmp_path / 'a.jsonl').write_text(f'{json.dumps({"text": line})}\n' * 20_000)
  refused('a.jsonl', r'its 20,000 lines, of at most \d+ bytes each, are all equal')
  (tmp_path / 'a.txt').write_text('\n'.join(['A title', *[line] * 20_000]))
  with pytest.raises(
    ConfigError, match=r'20,000 of its lines, .* are equal .* all other text is 8 bytes; at least'
  ) as error:
    text_files.register(config('a.txt'))
  # The number that is said to do does.
  needed = int(re.search(r'at least (\d+) bytes', str(error.value))[1])
  others = [f'Another line, {i:04}' for i in range(needed // 19 + 1)]
  (tmp_path / 'a.txt').write_text('\n'.join([*[line] * 20_000, *others]))
  text_files.register(config('a.txt'))
  held_out = '\n'.join(text_files.get_corpus('a.txt').paragraphs(corpus.VALIDATION)).split('\n')
  assert set(held_out) <= {line, *others}
  assert held_out.count(line) < len(held_out) / 2  # some pieces are where both meet
  # Two lines in turn: each is a piece, so that what is held out is not trained on.
  (tmp_path / 'a.txt').write_text(f'{line}\nThe other line is this.\n' * 1000)
  assert set(text_files.get_corpus('a.txt').paragraphs(corpus.VALIDATION)) == {'The other line is this.'}


def test_nothing_but_blank_lines(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'\xef\xbb\xbf \n\r\r\n\t\n')
  refused('a.txt', r'its 1 file\(s\) have nothing but blank lines and empty texts')
  (tmp_path / 'b.jsonl').write_text('{"text": ""}\n{"text": " "}\n')
  refused('*.*', r'its 2 file\(s\) have nothing but blank lines and empty texts')


@pytest.mark.parametrize('size', [20_000, 60_000, 100_000])
def test_short_texts_without_blank_lines_can_be_split(tmp_path, size):
  for seed in range(20):
    (tmp_path / 'a.txt').write_text(text := make_text(size, seed))
    text_files.register(config('a.txt', 64, {'inputs': 64, 'targets': 14}))
    made = text_files.get_corpus('a.txt')
    assert 0.05 < made.num_bytes(corpus.VALIDATION) / size < 0.5
    pieces = {split: list(made.paragraphs(split)) for split in (corpus.TRAIN, corpus.VALIDATION)}
    assert not set(pieces[corpus.TRAIN]) & set(pieces[corpus.VALIDATION])
    lines = [line for split in pieces.values() for piece in split for line in piece.split('\n')]
    assert sorted(' '.join(lines).split()) == sorted(text.split())


def test_what_is_held_out_is_said(tmp_path):
  (tmp_path / 'a.txt').write_text(make_text(20_000, 0))
  assert re.fullmatch(
    r'20,000 bytes of text in 1 file\(s\), cut into pieces of at most 156 bytes; held out are 2,\d{3} bytes '
    r'\(1\d\.\d%\), \d\d of 1\d\d pieces',
    text_files.describe(config('a.txt')),
  )
  (tmp_path / 'a.txt').write_text(make_text(60_000, 0).replace('\n', '\n\n'))
  assert 'cut into' not in text_files.describe(config('a.txt'))


def test_a_few_long_documents_are_split_by_pieces(tmp_path):
  documents = [' '.join(f'{i}:{j}' for j in range(30_000)) for i in range(3)]
  (tmp_path / 'a.jsonl').write_text('\n'.join(json.dumps({'text': text}) for text in documents))
  made = text_files.get_corpus('a.jsonl')
  total = made.num_bytes(corpus.TRAIN) + made.num_bytes(corpus.VALIDATION)
  assert 0.05 < made.num_bytes(corpus.VALIDATION) / total < 0.2


@pytest.mark.parametrize('suffix', ['txt', 'jsonl'])
@pytest.mark.parametrize('size', [30_000, 800_000])
def test_the_ends_of_lines_are_no_part_of_the_text(tmp_path, suffix, size):
  text = make_text(size, 0)
  if suffix == 'jsonl':
    text = ''.join(json.dumps({'text': f'{line}\nand more', 'id': 5}) + '\n' for line in text.split('\n'))
  found = []
  for end in ('\n', '\r\n', '\r'):
    (tmp_path / end.encode().hex()).mkdir()
    path = tmp_path / end.encode().hex() / f'a.{suffix}'
    mark = b'\xef\xbb\xbf' if end == '\r\n' else b''
    inside = json.dumps(end)[1:-1] if size < 100_000 else '\\n'  # makes the file longer, which counts for the share
    path.write_bytes(mark + text.replace('\n', end).replace('\\n', inside).encode())
    made = text_files.get_corpus(str(path))
    found.append((made.digest, [list(made.paragraphs(split)) for split in (corpus.TRAIN, corpus.VALIDATION)]))
  assert found[1] == found[2] == found[0]
  if suffix == 'txt':  # the bytes of these are the same too
    digests = {text_files.corpus_digest(config(str(path))) for path in tmp_path.glob(f'*/a.{suffix}')}
    assert len(digests) == 1


@pytest.mark.parametrize(
  ('text', 'digest'),
  [
    (make_text(60_000, 0).replace('\n', '\n\n'), 'ff435413bfe3b750'),
    (make_text(1_000_000, 0), 'ab0b52eb112ee80c'),
  ],
)
def test_runs_that_began_before_texts_were_cut_smaller_go_on(tmp_path, text, digest):
  (tmp_path / 'a.txt').write_text(text)
  assert text_files.corpus_digest(config('a.txt'))[:16] == digest  # as commit 3bc4dc6 has it


def test_the_digest_follows_the_contents(tmp_path):
  text = '\n\n'.join(f'Paragraph number {i} of this text.' for i in range(100))
  (tmp_path / 'a.txt').write_text(text)
  digest = text_files.corpus_digest(config('a.txt'))
  os.utime(tmp_path / 'a.txt', (1, 1))
  assert text_files.corpus_digest(config(str(tmp_path / '*.txt'))) == digest
  (tmp_path / 'a.txt').write_text(text.replace('99', '98'))
  assert text_files.corpus_digest(config('a.txt')) != digest


def test_language_modelling_reads_all_of_the_text(tmp_path):
  words = make_text(20_000, seed=0)
  (tmp_path / 'a.txt').write_text(words)
  lengths = {'targets': 64}
  data = dataclasses.replace(
    config('a.txt', lengths=lengths), mixture_or_task_name=text_files.LM, task_module=text_files.__name__
  )
  [batch, *_], _ = read_held_out(data, 1000, decoder_only=True)
  held_out = text_files.get_corpus('a.txt').paragraphs(corpus.VALIDATION)
  vocabulary = make_vocabulary('bytes')
  read = [token for row in batch['decoder_target_tokens'] for token in row.tolist() if token]
  text = ''.join(
    vocabulary.decode(list(part)) for is_eos, part in itertools.groupby(read, lambda t: t == 1) if not is_eos
  )
  assert ''.join(f'{piece}\n' for piece in held_out).startswith(text)
  assert len(text) > 100
