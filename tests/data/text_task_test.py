"""Tasks over a corpus: text in, inputs and targets with EOS out."""

import pytest

from switch_jax.data import corpus, padded_rows, text_task
from switch_jax.data.quiet_tensorflow import seqio, tf

TEXT = ['first', 'second\nline', 'third']
LENGTHS = {'inputs': 64, 'targets': 64}


@pytest.fixture
def add(tmp_path, monkeypatch):
  """Returns a function that registers a task of a small corpus, and a list of the times the corpus was asked for."""
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path))
  asked, names = [], set()

  def write(writer):
    for text in TEXT:
      writer.add(text, corpus.TRAIN)
    for number in range(5):
      writer.add(f'held out {number}', corpus.VALIDATION)

  def get_corpus():
    asked.append(None)
    return corpus.get_corpus('text', {}, write, held_out_fraction=0.0, num_files=1)

  def register(add_task, name, *arguments):
    names.add(name)
    add_task(name, get_corpus, *arguments)
    return seqio.get_mixture_or_task(name)

  yield register, asked
  for name in names:
    seqio.TaskRegistry.remove(name)


def examples(task, split='train'):
  """Returns the (inputs, targets) of a split as tokens."""
  dataset = task.get_dataset(LENGTHS, split=split, shuffle=False, seed=0, try_in_mem_cache=False)
  return [(e['inputs'].tolist(), e['targets'].tolist()) for e in dataset.as_numpy_iterator()]


def test_newlines_are_restored_and_one_ends_each_paragraph():
  lines = tf.data.Dataset.from_tensor_slices([f'a{corpus.NEWLINE_MARK}b', 'c'])
  assert [e['targets'] for e in text_task.restore_text(lines).as_numpy_iterator()] == [b'a\nb\n', b'c\n']


def test_the_corpus_is_made_when_it_is_read(add):
  register, asked = add
  task = register(text_task.add_span_corruption_task, 'corrupted')
  assert not asked
  ((inputs, targets),) = examples(task)  # documents are joined
  assert asked
  assert inputs[-1] == targets[-1] == 1
  sentinels = [token for token in targets if token > 258]
  assert sentinels[0] == 358
  assert sentinels == [token for token in inputs if token > 258]


def test_prefix_language_modelling_keeps_paragraphs_apart(add):
  register, _ = add
  pairs = examples(register(text_task.add_prefix_lm_task, 'prefixes'))
  texts = [text_task.VOCABULARY.decode(inputs[:-1] + targets[:-1]) for inputs, targets in pairs]
  assert texts == [f'{text}\n' for text in TEXT]
  assert all(inputs[-1] == targets[-1] == 1 for inputs, targets in pairs)


def test_an_older_task_of_the_name_gives_way(add):
  register, _ = add
  register(text_task.add_prefix_lm_task, 'again')
  task = register(text_task.add_continuation_task, 'again', seqio.ByteVocabulary(extra_ids=7))
  assert task.output_features['inputs'].vocabulary.extra_ids == 7
  # All 24 bytes fit into the inputs, and a continuation needs more than them.
  assert examples(task) == []


def test_a_continuation_fits_its_row_and_is_not_cut(add):
  register, _ = add
  task = register(text_task.add_continuation_task, 'fitting')
  assert padded_rows.examples_fit(task)
  lengths = {'inputs': 4, 'targets': 7}
  read = dict(sequence_length=lengths, shuffle=False, seed=0, try_in_mem_cache=False)
  pairs = [
    [(e['inputs'].tolist(), e['targets'].tolist()) for e in dataset.as_numpy_iterator()]
    for dataset in (task.get_dataset(**read, trim_output_features=cut) for cut in (True, False))
  ]
  assert pairs[0] == pairs[1]
  assert len(pairs[0]) > 2
  assert all(len(inputs) == 4 and len(targets) <= 7 for inputs, targets in pairs[0])
  other = register(text_task.add_prefix_lm_task, 'others')
  assert not padded_rows.examples_fit(other)
  seqio.MixtureRegistry.add('fitting_and_others', [('fitting', 1.0), ('others', 1.0)])
  assert not padded_rows.examples_fit(seqio.MixtureRegistry.get('fitting_and_others'))
  seqio.MixtureRegistry.remove('fitting_and_others')


def test_halves_of_the_held_out_text(add):
  register, _ = add
  task = register(text_task.add_prefix_lm_task, 'halves')
  texts = {
    split: sorted(text_task.VOCABULARY.decode(inputs[:-1] + targets[:-1]) for inputs, targets in examples(task, split))
    for split in ('validation', *text_task.HALVES)
  }
  assert texts['validation_even'] == [f'held out {number}\n' for number in (0, 2, 4)]
  assert texts['validation_odd'] == [f'held out {number}\n' for number in (1, 3)]
  assert texts['validation'] == sorted(texts['validation_even'] + texts['validation_odd'])
