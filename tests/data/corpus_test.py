"""The cache of corpora: whole or not there."""

import pathlib

import pytest

from switch_jax.config import ConfigError
from switch_jax.data import corpus


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
