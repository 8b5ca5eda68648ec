"""Examples as T5's paper prints them (appendix D), and every task of the paper on mock data of its real schema."""

import pytest

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import providers
from switch_jax.data.quiet_tensorflow import seqio, tf
from tasks import c4, formats, glue, mixtures, paper, question_answering, reasoning, summarization, super_glue

LENGTHS = {'inputs': 40, 'targets': 12}


def made(make, **example):
  """Returns inputs and targets of one example as text."""
  tensors = tf.nest.map_structure(tf.constant, example)
  result = make(tensors)
  return result['inputs'].numpy().decode(), result['targets'].numpy().decode()


def of_glue(module, name, **example):
  prefix, fields, classes, _ = module.CLASSIFICATION[name]
  return made(formats.labelled(prefix, fields, classes), idx=7, **example)


def test_classification():
  assert of_glue(glue, 'cola', sentence='John made Bill master of himself.', label=1) == (
    'cola sentence: John made Bill master of himself.',
    'acceptable',
  )
  assert of_glue(glue, 'mnli', hypothesis='The Cardinals have won.', premise='yeah well', label=2) == (
    'mnli hypothesis: The Cardinals have won. premise: yeah well',
    'contradiction',
  )
  assert of_glue(glue, 'qqp', question1='Why?', question2='How?', label=0)[1] == 'not_duplicate'
  assert of_glue(super_glue, 'copa', choice1='a', choice2='b', premise='p', question='effect', label=1) == (
    'copa choice1: a choice2: b premise: p question: effect',
    'choice2',
  )
  assert of_glue(super_glue, 'wic', sentence1='It was a swing.', sentence2='Swing it.', word='swing', label=0) == (
    'wic sentence1: It was a swing. sentence2: Swing it. word: swing',
    'False',
  )
  assert of_glue(super_glue, 'axb', sentence1='One.', sentence2='Two.', label=1) == (
    'rte hypothesis: Two. premise: One.',
    'not_entailment',
  )


def test_labels_that_are_withheld_or_outside_the_set():
  assert of_glue(glue, 'rte', sentence1='', sentence2='x', label=-1) == ('rte sentence1:  sentence2: x', '<unk>')
  with pytest.raises(tf.errors.InvalidArgumentError, match='not in'):
    of_glue(glue, 'rte', sentence1='a', sentence2='b', label=2)


def test_similarity_is_rounded_to_fifths():
  for label, text in ((3.8, '3.8'), (2.533, '2.6'), (0.09, '0.0'), (5.0, '5.0')):
    assert made(formats.stsb, sentence1='A', sentence2='B', label=label, idx=0) == (
      'stsb sentence1: A sentence2: B',
      text,
    )


def test_multirc_without_html():
  inputs, targets = made(
    formats.multirc,
    question='Who?',
    answer='Both',
    paragraph='<b>Sent 1: </b>One.<br><b>Sent 2: </b>Two.',
    label=1,
    idx={'paragraph': 5, 'question': 29, 'answer': 3},
  )
  assert inputs == 'multirc question: Who? answer: Both paragraph: Sent 1: One. Sent 2: Two.'
  assert targets == 'True'


def test_record_has_an_example_for_each_answer():
  example = {
    'query': 'A @placeholder was there',
    'passage': 'It ended.\n@highlight\nHe won\n@highlight\nShe lost',
    'entities': ['Rome', 'Italy'],
    'answers': ['Rome', 'Italy'],
    'idx': {'passage': 1, 'query': 2},
  }
  dataset = tf.data.Dataset.from_tensors(tf.nest.map_structure(tf.constant, example | {'answers': ['Rome', 'Italy']}))
  examples = list(formats.record(dataset).as_numpy_iterator())
  assert [e['targets'] for e in examples] == [b'Rome', b'Italy']
  assert examples[1]['inputs'].decode() == (
    'record query: A @placeholder was there entities: Rome, Italy passage: It ended. He won. She lost'
  )
  assert examples[1]['answers'].tolist() == [b'Rome', b'Italy']
  tensors = example | {'answers': tf.zeros([0], tf.string)}
  (withheld,) = formats.record(tf.data.Dataset.from_tensors(tensors)).as_numpy_iterator()
  assert withheld['targets'] == b'<unk>'


@pytest.mark.parametrize(
  ('text', 'pronoun', 'index', 'marked'),
  [
    ('Mitchell asked Tom if he could lend some money.', 'he', 4, 'Mitchell asked Tom if *he* could lend some money.'),
    ('He laughed. "Good for him," he said. ', 'him', 4, 'He laughed. "Good for *him* ," he said.'),
    ('They want to use it , now', 'it', 3, 'They want to use *it* , now'),
  ],
)
def test_winograd_schemas(text, pronoun, index, marked):
  example = {'text': text, 'span1_text': 'Tom', 'span2_text': pronoun, 'span2_index': index, 'label': 1, 'idx': 0}
  assert made(formats.wsc, **example) == (f'wsc: {marked}', 'Tom')


def test_definite_pronouns():
  sentence = 'The bee landed on the flower because it had pollen, it did.'
  assert made(
    formats.definite_pronoun, sentence=sentence, pronoun='it', candidates=['the bee', 'the flower'], label=1
  ) == (
    'wsc: The bee landed on the flower because *it* had pollen, it did.',
    'the flower',
  )


def test_squad_has_spaces_around_punctuation():
  example = {'id': '1', 'question': "What's it?", 'context': 'A (b), c.\n\nD', 'answers': {'text': ['b', 'A (b)']}}
  assert made(formats.squad, **example) == ("question: What ' s it ? context: A ( b ) , c . D", 'b')


def test_summaries_questions_and_choices():
  assert made(formats.summary('document', 'summary'), document='Long. ', summary='Short') == (
    'summarize: Long. ',
    'Short',
  )
  make = question_answering.CLOSED_BOOK['trivia_qa_open'][3]
  assert made(make, question='Who?', answer={'value': 'Ann', 'aliases': ['Ann', 'Anna']}) == (
    'trivia_qa question: Who?',
    'Ann',
  )
  assert made(question_answering.CLOSED_BOOK['natural_questions_open'][3], question='q', answer=['x', 'y']) == (
    'nq question: q',
    'x',
  )
  assert made(formats.winogrande, sentence='_ is big.', option1='A', option2='B', label=1) == (
    'winogrande sentence: _ is big. option1: A option2: B',
    'B',
  )
  choices = {'text': ['red', 'blue', 'green'], 'label': [0, 1, 2]}
  assert made(formats.arc, question='Which?', choices=choices, answerKey=1) == (
    'arc question: Which? choices: (A) red (B) blue (C) green',
    'blue',
  )


@pytest.fixture(scope='module')
def config():
  """All tasks of the paper over bytes."""
  config = DataConfig(
    mixture_or_task_name='glue_cola_v002',
    task_module='tasks.paper',
    feature_lengths=LENGTHS,
    batch_size=2,
    vocabulary='bytes',
  )
  providers.import_task_module(config)
  return config


def paper_tasks():
  """Returns the tasks of the paper that mock data can be made for."""
  paper.register(None)
  names = sorted(
    name for name in seqio.TaskRegistry.names() if isinstance(seqio.TaskRegistry.get(name).source, c4.TfdsSource)
  )
  # Mock data is no use where fields must fit together: words and their places, choices and their letters.
  return [name for name in names if not name.startswith(('super_glue_wsc', 'arc', 'c4'))]


@pytest.mark.parametrize('name', paper_tasks())
def test_tasks_on_mock_data(name, config, mock_data):
  task = seqio.get_mixture_or_task(name)
  split = task.splits[0] if not isinstance(task.splits, dict) else next(iter(task.splits))
  examples = list(task.get_dataset(LENGTHS, split=split, shuffle=False, try_in_mem_cache=False).as_numpy_iterator())
  assert examples
  for example in examples:
    for feature, length in LENGTHS.items():
      tokens = example[feature]
      assert 1 <= len(tokens) <= length
      assert tokens[-1] == 1  # trimmed texts keep their EOS
    if task.postprocess_fn and example['targets_pretokenized'] != b'<unk>':
      text = example['targets_pretokenized'].decode()
      target = task.postprocess_fn(text, example=example, is_target=True)
      prediction = task.postprocess_fn(text, example=example, is_target=False)
      for metric in task.metric_fns:
        assert all(value == value or 'corrcoef' in key for key, value in metric([target], [prediction]).items())


@pytest.fixture
def mock_data(monkeypatch):
  """Random examples of every data set's schema."""
  monkeypatch.setattr(seqio.utils.LazyTfdsLoader, '_MEMOIZED_BUILDERS', {})
  tfds = pytest.importorskip('tensorflow_datasets')
  with tfds.testing.mock_data(num_examples=3):
    yield


def test_labels_are_those_of_the_data_sets():
  from tensorflow_datasets.text import glue as tfds_glue
  from tensorflow_datasets.text import super_glue as tfds_super_glue

  for module, builder in ((glue, tfds_glue.Glue), (super_glue, tfds_super_glue.SuperGlue)):
    for name, (_, _, classes, _) in module.CLASSIFICATION.items():
      assert tuple(builder.builder_configs[name].label_classes) == classes
  assert set(glue.CLASSIFICATION) | {'stsb'} == set(tfds_glue.Glue.builder_configs)


def test_c4_makes_full_rows(config, monkeypatch):
  text = ' '.join(f'word{i}' for i in range(400))
  monkeypatch.setattr(
    c4._SOURCE, 'get_dataset', lambda *args, **kwargs: tf.data.Dataset.from_tensors({'text': text}).repeat(3)
  )
  lengths = {'inputs': 128, 'targets': 29}
  task = seqio.get_mixture_or_task(c4.SPAN_CORRUPTION)
  examples = list(
    task.get_dataset(lengths, split='train', shuffle=False, seed=0, try_in_mem_cache=False).as_numpy_iterator()
  )
  assert {len(e['inputs']) for e in examples[:-1]} == {128}
  assert {len(e['targets']) for e in examples[:-1]} == {29}
  lengths = {'inputs': 64, 'targets': 64}
  task = seqio.get_mixture_or_task(c4.PREFIX_LM)
  examples = list(
    task.get_dataset(lengths, split='train', shuffle=False, seed=0, try_in_mem_cache=False).as_numpy_iterator()
  )
  vocabulary = task.output_features['targets'].vocabulary
  # Nothing is lost: prefixes and rests without their EOS are the three documents.
  joined = ''.join(vocabulary.decode([*e['inputs'][:-1].tolist(), *e['targets'][:-1].tolist()]) for e in examples)
  assert joined == text * 3
  assert len({len(e['inputs']) for e in examples}) > 20


def test_mixtures_by_tokens(config, mock_data, tmp_path, monkeypatch):
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path))
  mixtures._tokens_of.cache_clear()
  monkeypatch.setattr(c4.TfdsSource, 'num_input_examples', lambda self, split: 300)
  mixture = seqio.get_mixture_or_task('glue_v002_by_tokens')
  task = seqio.TaskRegistry.get('glue_cola_v002')
  counted = list(task.preprocess_precache(task.source.get_dataset('train', shuffle=False), seed=0).as_numpy_iterator())
  tokens = sum(len(e['inputs']) + len(e['targets']) + 2 for e in counted)
  assert mixture.get_rate(task) == tokens * 300 / min(300, mixtures.EXAMPLES_COUNTED)
  assert mixture.get_rate(seqio.TaskRegistry.get('glue_ax_v002')) == 0
  assert len(list((tmp_path / 'token_counts').iterdir())) == 1
  by_examples = seqio.get_mixture_or_task('glue_v002_proportional')
  assert by_examples.get_rate(task) == 8551


def test_data_that_is_not_there():
  source = c4.TfdsSource('glue/sst2:1.0.0', ('train',))
  for read in (source.get_dataset, source.list_shards, source.num_input_examples):
    with pytest.raises(ConfigError, match=r'glue/sst2:1.0.0 is not in .*tensorflow_datasets.*tfds.load.*TFDS_DATA_DIR'):
      read('train')


def test_the_default_vocabulary_is_not_read_before_it_is_needed():
  summarization.register(None)
  reasoning.register(None)
  vocabulary = seqio.TaskRegistry.get('arc_easy').output_features['targets'].vocabulary
  assert vocabulary.sentencepiece_model_file == 'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model'
  with pytest.raises(ConfigError, match=r'cannot be read.*copy T5'):
    providers.find_provider(DataConfig(mixture_or_task_name='arc_easy', feature_lengths=LENGTHS, batch_size=2), 'train')
