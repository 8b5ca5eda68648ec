"""The user's own text: what is read, what is held out, and what is said when it cannot be."""

import json
import os

import pytest

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import corpus
from tasks import text_files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """A cache of this test's own."""
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.chdir(tmp_path)


def config(pattern, batch_size=2):
  """Returns a configuration that reads a pattern."""
  return DataConfig(
    mixture_or_task_name=text_files.NAME,
    feature_lengths={'inputs': 32, 'targets': 16},
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
  refused('*.csv', r'matches a\.csv; only \.txt and \.jsonl files are read')
  (tmp_path / 'a.txt').write_text('')
  refused('*.txt', r'1 file\(s\) are empty')
  (tmp_path / 'gone.txt').symlink_to('nowhere')
  refused('gone.txt', r'gone\.txt cannot be read')


def test_what_is_not_utf8(tmp_path):
  (tmp_path / 'a.txt').write_bytes('Good line\nÄrger'.encode('latin-1'))
  refused('a.txt', r'a\.txt is not UTF-8: byte 0xc4 at offset 10; convert it')


def test_what_is_not_json(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "fine"}\n{"text": "cut\n')
  refused('a.jsonl', r'a\.jsonl:2 is not JSON \(Unterminated string')
  (tmp_path / 'b.jsonl').write_text('{"text": "fine"}\n\n{"body": "what", "id": 3}\n')
  refused('b.jsonl', r"b\.jsonl:3 has no text: it is an object with 'body', 'id'; .* field \"text\" is a string")
  (tmp_path / 'c.jsonl').write_text('["text"]\n')
  refused('c.jsonl', r"c\.jsonl:1 has no text: it is \['text'\]")


def test_too_little_text_for_a_held_out_batch(tmp_path):
  text = '\n\n'.join(f'Paragraph number {i} of this text.' for i in range(100))
  (tmp_path / 'a.txt').write_text(text)
  refused(
    'a.txt',
    r'with 3\d\d\d bytes of text; its held-out \d+ bytes make \d+ rows .* less than a batch of 64; use more',
    batch_size=64,
  )
  text_files.register(config('a.txt', batch_size=2))


def test_the_digest_follows_the_contents(tmp_path):
  text = '\n\n'.join(f'Paragraph number {i} of this text.' for i in range(100))
  (tmp_path / 'a.txt').write_text(text)
  digest = text_files.corpus_digest(config('a.txt'))
  os.utime(tmp_path / 'a.txt', (1, 1))
  assert text_files.corpus_digest(config(str(tmp_path / '*.txt'))) == digest
  (tmp_path / 'a.txt').write_text(text.replace('99', '98'))
  assert text_files.corpus_digest(config('a.txt')) != digest


def test_large_files_are_read_again_only_if_they_look_different(tmp_path, monkeypatch):
  monkeypatch.setattr(text_files, 'MAX_BYTES_TO_REREAD', 10)
  path = tmp_path / 'a.txt'
  path.write_text('some text of more than ten bytes')
  os.utime(path, (1, 1))
  first = text_files.identify([path])
  monkeypatch.setattr(text_files, '_contents', lambda path: {'read': 'again'})
  assert text_files.identify([path]) == first
  os.utime(path, (2, 2))
  assert text_files.identify([path]) == [{'read': 'again'}]
