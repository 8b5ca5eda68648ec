"""Pairs of texts to tokens: what is trimmed, what is ended, and what a task takes the place of."""

import pytest

from switch_jax.data import corpus
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.vocabularies import make_vocabulary
from switch_jax.tasks import text_to_text

NAME = 'text_to_text_test'


@pytest.fixture(autouse=True)
def no_task_is_left():
  yield
  text_to_text.remove_task(NAME)


def read(lengths):
  dataset = seqio.get_mixture_or_task(NAME).get_dataset(lengths, 'train', shuffle=False, try_in_mem_cache=False)
  return list(dataset.as_numpy_iterator())


def test_a_pair_is_one_line_of_a_corpus(tmp_path, monkeypatch):
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path))
  pairs = {'a b': 'c', 'long text': '', '': 'x'}

  def write(writer):
    for inputs, targets in pairs.items():
      writer.add(text_to_text.pair_line(f' {inputs}\n', f'\t{targets}'), corpus.TRAIN)

  make = lambda: corpus.get_corpus('pairs', {}, write, held_out_fraction=0.0, num_files=1)  # noqa: E731
  vocabulary = make_vocabulary('bytes')
  metric = lambda targets, predictions: {'x': 0.0}  # noqa: E731
  text_to_text.add_pair_task(NAME, make, vocabulary, [metric], lambda text, example, is_target: text.upper())
  examples = read({'inputs': 5, 'targets': 3})
  texts = [tuple(e[f'{side}_pretokenized'].decode() for side in ('inputs', 'targets')) for e in examples]
  assert dict(texts) == pairs
  for example, (inputs, targets) in zip(examples, texts, strict=True):
    assert example['inputs'].tolist() == [*vocabulary.encode(inputs)[:4], 1]  # the end goes, and EOS stays
    assert example['targets'].tolist() == [*vocabulary.encode(targets), 1]  # of nothing EOS alone
  task = seqio.TaskRegistry.get(NAME)
  assert task.postprocess_fn('c', example={}, is_target=True) == 'C'
  assert task.metric_fns == [metric]


def test_white_space_in_a_pair_is_one_space():
  assert text_to_text.pair_line(' a \t b\n\nc', 'd\te ') == 'a b c\td e'


def test_a_task_takes_the_place_of_one_of_its_name():
  text_to_text.remove_task(NAME)  # there is none, which is no error
  vocabulary = make_vocabulary('bytes')
  for word in ('old', 'new'):
    source = seqio.FunctionDataSource(
      lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors({'word': 'abc'}), splits=('train',)
    )
    make = text_to_text.mapped(lambda example, word=word: {'inputs': example['word'], 'targets': word})
    text_to_text.add_task(NAME, source, [make], vocabulary)
  [example] = read({'inputs': 9, 'targets': 9})
  assert (example['inputs_pretokenized'], example['targets_pretokenized']) == (b'abc', b'new')
  text_to_text.remove_task(NAME)
  assert NAME not in seqio.TaskRegistry.names()
