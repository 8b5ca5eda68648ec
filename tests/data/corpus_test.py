"""The cache of corpora: whole or not there."""

import pathlib

import pytest

from switch_jax.config import ConfigError
from switch_jax.data import corpus, text_task
from switch_jax.data.quiet_tensorflow import tf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """A cache of this test's own."""
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def get(write=None, made_of=1, **kwargs):
  """Returns a corpus of 400 paragraphs, a tenth held out."""

  def write_numbers(writer):
    for i in range(400):
      writer.add(f'paragraph {i}')

  return corpus.get_corpus('kind', {'made_of': made_of}, write or write_numbers, held_out_fraction=0.1, **kwargs)


def test_every_paragraph_is_in_one_split_by_its_hash():
  made = get()
  train, held_out = (list(made.paragraphs(split)) for split in ('train', 'validation'))
  assert sorted(train + held_out) == sorted(f'paragraph {i}' for i in range(400))
  assert all(corpus.is_held_out(text, 0.1) for text in held_out)
  assert 20 < len(held_out) < 60
  assert made.num_bytes('train') == sum(len(text) + 1 for text in train)
  # Neighbours stay together: sixteen lines of a file, then the next file.
  assert len(made.files('train')) == 16
  in_order = [f'paragraph {i}' for i in range(400) if f'paragraph {i}' in set(train)]
  assert pathlib.Path(made.files('train')[1]).read_text().splitlines()[:16] == in_order[16:32]


def test_a_corpus_is_made_once_for_each_content():
  first = get()

  def fail(writer):
    raise AssertionError('made again')

  assert get(fail).summary == first.summary
  with pytest.raises(AssertionError, match='made again'):
    get(fail, made_of=2)
  # What a maker that failed has left is gone.
  assert len(list(first.directory.parent.iterdir())) == 1


def test_newlines_are_kept_as_marks_and_few_paragraphs_make_few_files():
  made = get(lambda writer: [writer.add('two\nlines', 'train'), writer.add(f'a{corpus.NEWLINE_MARK}b', 'train')])
  [name] = made.files('train')
  assert pathlib.Path(name).read_bytes() == b'two\x1elines\na b\n'
  assert list(made.paragraphs('train')) == ['two\nlines', 'a b']
  assert made.files('validation') == []


def test_what_is_written_is_what_tensorflow_reads():
  texts = ['a\rb', 'c\r\nd\r', 'e\x0bf\x0c\x85\u2028g\0h', '\r', 'i\x1e\n\nj é']
  plain = ['a\nb', 'c\nd\n', 'e\x0bf\x0c\x85\u2028g\0h', '\n', 'i \n\nj é']
  made = get(lambda writer: [writer.add(text, 'train') for text in texts], num_files=1)
  assert list(made.paragraphs('train')) == plain
  read = text_task.restore_text(tf.data.TextLineDataset(made.files('train'))).as_numpy_iterator()
  assert [example['targets'].decode() for example in read] == [f'{text}\n' for text in plain]
  # And so is what is digested.
  assert get(lambda writer: [writer.add(text, 'train') for text in plain], 2, num_files=1).digest == made.digest


def test_enough_is_held_out_whatever_the_hashes_are():
  for seed in range(100):
    pieces = [f'{seed}: piece {i}' for i in range(40)]
    chosen = corpus.choose_held_out(pieces, 0.1)
    assert len(chosen) in (4, 5)
    assert corpus.choose_held_out([*pieces[::-1]], 0.1) == chosen
  # Of few pieces the smallest, although it is more than asked for; of equal ones none.
  assert corpus.choose_held_out(['a' * 50, 'b' * 30, 'c' * 40], 0.1) == {corpus.hash_text('b' * 30)}
  assert corpus.choose_held_out(['a', 'b'], 0.1) in ({corpus.hash_text('a')}, {corpus.hash_text('b')})
  assert corpus.choose_held_out(['same'] * 9, 0.1) == corpus.choose_held_out(['one'], 0.1) == frozenset()
  assert corpus.choose_held_out([], 0.1) == frozenset()


@pytest.mark.parametrize('damage', ['file gone', 'file shorter', 'summary broken'])
def test_a_damaged_corpus_is_made_again(damage):
  made = get()
  path = made.directory / ('corpus.json' if 'summary' in damage else 'train_03.txt')
  if damage == 'file gone':
    path.unlink()
  else:
    path.write_text('{')
  again = get()
  assert again.summary == made.summary
  assert sorted([*again.paragraphs('train'), *again.paragraphs('validation')]) == sorted(
    f'paragraph {i}' for i in range(400)
  )
  assert len(list(made.directory.parent.iterdir())) == 1


def test_of_two_that_make_it_at_once_one_is_kept(cache):
  def write(writer):
    writer.add('text', 'train')
    if not (cache / 'kind' / 'other_is_done').exists():
      (cache / 'kind' / 'other_is_done').touch()
      get(write)  # another process overtakes

  assert list(get(write).paragraphs('train')) == ['text']
  assert sorted(path.name[:6] for path in (cache / 'kind').iterdir())[1:] == ['other_']


def test_a_cache_that_cannot_be_written_is_said(cache):
  cache.write_text('a file where the folder should be')
  with pytest.raises(ConfigError, match=r'cache folder .* cannot be written .*SWITCH_JAX_CACHE'):
    get()
