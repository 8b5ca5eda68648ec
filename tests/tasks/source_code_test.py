"""Source code as text: what is taken of the packages, what is held out, and the tasks, on a package of the test."""

import pytest

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import corpus
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.tasks import docstrings, source_code

LENGTHS = {'inputs': 32, 'targets': 16}
COMMON = 'def common(argument):\n  return argument + 1  # stands in every file'


def block(name):
  return f'def {name}(argument):\n  return [argument, "{name}"]  # only here'


@pytest.fixture
def package(tmp_path, monkeypatch):
  """Stands in for what is installed: one package of 300 files; returns its folder."""
  root = tmp_path / 'made_up'
  (root / 'tests').mkdir(parents=True)
  for i in range(300):
    (root / f'module_{i}.py').write_text(f'{block(f"first_{i}")}\n\n\n{COMMON}\n \t\n{block(f"second_{i}")}\n\nx = 1\n')
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(docstrings, 'find_roots', lambda: {'made_up': [root]})
  return root


def config(**fields):
  return DataConfig(mixture_or_task_name=source_code.SPAN_CORRUPTION, feature_lengths=LENGTHS, batch_size=2, **fields)


def test_blocks_keep_their_indentation_and_short_ones_are_left_out():
  long = '    return [element for element in elements]  # indented'
  assert list(source_code.find_blocks(f'x = 1\n\n{long}  \n\n\n{COMMON}\n')) == [long, COMMON]
  exact = 'a' * source_code.MIN_BLOCK_CHARACTERS
  assert list(source_code.find_blocks(f'{exact}\n\n{exact[1:]}')) == [exact]


def test_files_are_named_by_package_and_tests_left_out(package):
  for name in ('tests/helper.py', 'test_module.py', 'data.txt'):
    (package / name).write_text(block('nowhere'))
  found = source_code.find_files()
  assert sorted(name for name, _ in found) == sorted(f'made_up/module_{i}.py' for i in range(300))
  assert all(path == package / name.removeprefix('made_up/') for name, path in found)
  assert [name for name, _ in found] != sorted(name for name, _ in found)  # in the order of hashes


def test_no_block_that_is_held_out_is_trained_on_and_none_stands_twice(package):
  made = source_code.get_corpus()
  blocks = {split: [b for d in made.paragraphs(split) for b in d.split('\n\n')] for split in ('train', 'validation')}
  both = blocks['train'] + blocks['validation']
  assert len(both) == len(set(both)) == 601
  assert COMMON in blocks['validation']
  held_out = {name for name, _ in source_code.find_files() if corpus.is_held_out(name, source_code.HELD_OUT_FRACTION)}
  assert 1 <= len(held_out) <= 15
  expected = {
    block(f'{part}_{i}') for i in range(300) for part in ('first', 'second') if f'made_up/module_{i}.py' in held_out
  }
  assert set(blocks['validation']) == expected | {COMMON}


def test_files_that_are_too_large_or_not_utf8_are_left_out(package, monkeypatch):
  whole = source_code.get_corpus()
  (package / 'latin.py').write_bytes(block('latin').encode() + b'\xe9')
  (package / 'large.py').write_text(block('large') + '\n#' + 'x' * source_code.MAX_FILE_BYTES)
  monkeypatch.setattr(source_code, 'BUILDER_VERSION', -1)  # another cache
  again = source_code.get_corpus()
  assert again.directory != whole.directory
  assert again.digest == whole.digest


def test_documents_are_some_two_thousand_characters():
  blocks = ['a' * 700, 'b' * 700, 'c' * 700, 'd' * 5000, 'e' * 50]
  assert list(source_code._documents(blocks)) == [f'{blocks[0]}\n\n{blocks[1]}', *blocks[2:]]


def test_the_size_is_bounded(package, monkeypatch):
  monkeypatch.setattr(source_code, 'MAX_CHARACTERS', 5000)
  made = source_code.get_corpus()
  assert 5000 <= sum(len(text) for text in made.paragraphs('train')) + made.num_bytes('validation') < 6000


def test_packages_without_sources_are_an_error(package):
  for path in package.glob('*.py'):
    path.unlink()
  with pytest.raises(ConfigError, match=r'No source code was found in .*switch_jax.tasks.text_files'):
    source_code.get_corpus()


def test_the_tasks_read_the_corpus(package):
  source_code.register(config(vocabulary='bytes'))
  text = '\n'.join(source_code.get_corpus().paragraphs('train'))
  for name in (source_code.SPAN_CORRUPTION, source_code.PREFIX_LM, source_code.CONTINUATION):
    task = seqio.get_mixture_or_task(name)
    dataset = task.get_dataset(LENGTHS, split='train', shuffle=False, seed=0, try_in_mem_cache=False)
    example = next(dataset.as_numpy_iterator())
    inputs, targets = (
      task.output_features[side].vocabulary.decode([int(token) for token in example[side] if 2 < token < 259])
      for side in ('inputs', 'targets')
    )
    if name == source_code.SPAN_CORRUPTION:
      assert len(example['inputs']) == 32
    else:
      assert inputs + targets in text
    if name == source_code.CONTINUATION:
      assert len(inputs) == 31
  assert source_code.corpus_digest(config()) == source_code.get_corpus().digest


def test_the_vocabulary_is_trained_on_a_part_of_the_training_text(package, monkeypatch):
  seen = {}

  def get_cached(digest, size, texts):
    seen.update(digest=digest, size=size, texts=list(texts()))
    return 'some.model'

  monkeypatch.setattr(source_code.train_vocabulary, 'get_cached', get_cached)
  monkeypatch.setattr(source_code, '_VOCABULARY_PART', 4)
  assert source_code.get_vocabulary_file() == 'some.model'
  made = source_code.get_corpus()
  assert seen == {'digest': f'{made.digest} 1/4', 'size': 1000, 'texts': list(made.paragraphs('train'))[::4]}
