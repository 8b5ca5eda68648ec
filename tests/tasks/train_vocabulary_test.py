"""The command that trains vocabularies."""

import pytest

from switch_jax.data.vocabularies import check_vocabulary, make_vocabulary
from switch_jax.tasks import train_vocabulary

TEXT = 'The experts of a layer are many, and every token goes to one of them. ' * 3


@pytest.fixture
def text_file(tmp_path):
  """A text with one very long line."""
  lines = [f'{TEXT} Number {i}.' for i in range(60)]
  (tmp_path / 'a.txt').write_text('\n\n'.join(lines) + '\n\n' + ' '.join(f'unusual{i % 9}' for i in range(2000)))
  return tmp_path / 'a.txt'


def test_trains_t5s_layout_and_the_same_model_again(text_file, tmp_path, capsys):
  for name in ('one.model', 'two.model'):
    arguments = [f'--text_files={text_file}', '--size=300', f'--out={tmp_path / name}']
    assert train_vocabulary.main(arguments) == 0
  assert '300 pieces, 400 ids with the 100 extra ones' in capsys.readouterr().out
  assert (tmp_path / 'one.model').read_bytes() == (tmp_path / 'two.model').read_bytes()
  vocabulary = make_vocabulary(str(tmp_path / 'one.model'))
  check_vocabulary(vocabulary)
  assert vocabulary.vocab_size == 400
  assert vocabulary.decode(vocabulary.encode('Any token, also 象 <extra_id_3>')) == 'Any token, also 象 <extra_id_3>'
  assert len(vocabulary.encode('unusual3 experts')) < 12  # words of the long line were seen


def test_long_lines_are_cut_and_nothing_is_lost():
  words = [f'w{i}' for i in range(3000)]
  lines = list(train_vocabulary._short_lines([' '.join(words), 'x' * 5000, ' \n\n']))
  assert max(map(len, lines)) <= train_vocabulary.MAX_LINE_CHARACTERS
  assert ' '.join(lines).split()[:3000] == words
  assert ''.join(lines[-3:]) == 'x' * 5000


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--size=400'], 'required: --out'),
    (['--out=x.model'], 'give one of --text_files'),
    (['--demo', '--text_files=x', '--out=x.model'], 'give one of --text_files'),
    (['--text_files=absent/*.txt', '--out=x.model'], 'matches no file'),
    (['--text_files={file}', '--size=20', '--out=x.model'], 'must be at least 300'),
    (['--text_files={file}', '--size=30000', '--out=x.model'], 'no vocabulary of 30000 pieces .* smaller --size'),
    (['--text_files={file}', '--size=many', '--out=x.model'], 'invalid int'),
    (['--text_files={file}', '--out=absent/x.model'], 'lies in none'),
  ],
)
def test_wrong_arguments(arguments, message, text_file, tmp_path, monkeypatch, capsys):
  import re

  monkeypatch.chdir(tmp_path)
  assert train_vocabulary.main([argument.format(file=text_file) for argument in arguments]) == 1
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert re.search(message, error)
