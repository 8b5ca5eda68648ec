"""The multilingual corpus and its tasks, from packages that the test writes."""

import collections
import dataclasses
import re

import jax
import numpy as np
import pytest

from switch_jax import data
from switch_jax.config import ConfigError, DataConfig, LossConfig
from switch_jax.data import corpus, providers, sampled_groups
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.model import losses
from switch_jax.training import evaluation
from tasks import answers, language_id, languages, mc4, metrics, multilingual, multilingual_text, translation

pytestmark = pytest.mark.usefixtures('multilingual_packages')
LANGUAGES = ('de', 'en', 'es', 'fr', 'iw', 'lo', 'no', 'pt')


@pytest.fixture
def config():
  """Rows of 64 and 14 bytes."""
  return DataConfig(
    mixture_or_task_name=multilingual.SPAN_CORRUPTION,
    task_module='tasks.multilingual',
    feature_lengths={'inputs': 64, 'targets': 14},
    batch_size=8,
  )


def texts_of(split):
  """Returns the texts of a split by language."""
  found = collections.defaultdict(list)
  for language, text in multilingual_text.tagged(multilingual_text.get_corpus(), split):
    found[language].append(text)
  return found


def test_languages_have_the_codes_of_mc4_and_locales_are_one():
  train, held_out = texts_of(corpus.TRAIN), texts_of(corpus.VALIDATION)
  assert tuple(sorted(train)) == tuple(sorted(held_out)) == LANGUAGES  # Samoan has too little
  assert {'melding', 'opplysing'} <= {text.split()[0] for text in train['no']}
  assert {'mensagem', 'recado'} <= {text.split()[0] for text in train['pt']}
  assert any(text.startswith('Message of kind') for text in train['en'])
  assert any(text.startswith('Article') for text in train['en'])


def test_no_translation_of_a_held_out_message_is_trained_on_in_any_language():
  number = re.compile(r'(?:Nummer|kind) (\d+)')
  sides = {
    split: {
      match[1] for texts in texts_of(split).values() for text in texts if (match := number.search(text)) is not None
    }
    for split in (corpus.TRAIN, corpus.VALIDATION)
  }
  assert sides[corpus.TRAIN].isdisjoint(sides[corpus.VALIDATION])
  assert len(sides[corpus.TRAIN]) + len(sides[corpus.VALIDATION]) == 400
  assert 80 < len(sides[corpus.VALIDATION]) < 160
  # Articles by their titles, in all languages alike.
  titles = {
    split: {re.search(r'\d+', t)[0] for code in ('en', 'es', 'fr') for t in texts_of(split)[code] if 'Article' in t}
    for split in sides
  }
  assert titles[corpus.TRAIN].isdisjoint(titles[corpus.VALIDATION])
  assert all(titles.values())


def test_messages_held_out_of_translation_are_held_out_here():
  messages = [f'Message of kind {i}' for i in range(400)]
  held_out = [message for message in messages if translation.choose_split(message) == corpus.VALIDATION]
  assert held_out
  assert all(multilingual_text.message_of(message).is_held_out for message in held_out)
  assert multilingual_text.message_of('Yes, please!') == multilingual_text.message_of('yes please')


def test_two_messages_with_one_translation_give_one_text():
  pair = [multilingual_text.message_of(f'Message of kind {i}') for i in range(40)]
  kept, left_out = next((a, b) for a in pair for b in pair if a.order < b.order and b.is_held_out != a.is_held_out)
  other = multilingual_text.Text('de', next(p for p in pair if p.is_held_out != kept.is_held_out), 'x' * 6000)
  same = [multilingual_text.Text('de', message, text) for message, text in ((left_out, 'Ja!'), (kept, 'ja'))]
  chosen = multilingual_text.choose_texts([*same, other, other._replace(message=kept, text='y')], [])
  assert [text.text for text in chosen['de'] if len(text.text) < 9 and text.text != 'y'] == ['ja']


def test_names_fill_up_what_is_short():
  sizes = collections.Counter()
  for split in (corpus.TRAIN, corpus.VALIDATION):
    sizes.update(multilingual_text.count_bytes(multilingual_text.get_corpus(), split))
  assert 30_000 <= sizes['lo'] < 30_050
  assert 30_000 <= sizes['de'] < 30_050
  assert sizes['iw'] < 30_000


def test_text_for_a_vocabulary_has_languages_in_the_shares_they_are_sampled_with():
  train = {code: set(texts) for code, texts in texts_of(corpus.TRAIN).items()}
  sizes = {code: sum(map(len, texts)) for code, texts in train.items()}
  total = sum(size**0.3 for size in sizes.values())
  found = collections.Counter()
  for text in multilingual_text.balanced():
    found[next(code for code, texts in train.items() if text in texts)] += len(text)
  for code, size in sizes.items():
    assert found[code] == pytest.approx(sum(sizes.values()) * size**0.3 / total, abs=100)


def read(config, split, count=None):
  """Returns examples of the task with their languages."""
  providers.import_task_module(config)
  task = seqio.get_mixture_or_task(config.mixture_or_task_name)
  names = task.output_features['group'].vocabulary.names
  dataset = task.get_dataset(config.feature_lengths, split=split, shuffle=False, seed=3, try_in_mem_cache=False)
  examples = list(dataset.take(count or -1).as_numpy_iterator())
  return [(names[example['group'][0] - 1], example) for example in examples]


def test_training_rows_are_full_and_of_one_language(config):
  vocabulary = data.vocabulary_of(config)
  words = {'de': 'Nachricht', 'iw': 'הודעה', 'lo': 'ປະເທດ'}
  for language, example in (examples := read(config, 'train', 300)):
    assert (len(example['inputs']), len(example['targets'])) == (64, 14)
    assert (example['inputs'][-1], example['targets'][-1]) == (1, 1)
    text = vocabulary.decode(example['inputs'].tolist())
    assert not any(word in text for other, word in words.items() if other != language and language != 'de')
  assert {language for language, _ in examples} == set(LANGUAGES)


def test_languages_are_drawn_by_their_size_to_a_power(config):
  train, _ = multilingual.get_streams(config)
  for exponent in (0.0, 0.3, 1.0):
    drawn = collections.Counter(
      name for name, _ in read(dataclasses.replace(config, sampling_exponent=exponent), 'train', 4000)
    )
    wanted = train.num_bytes**exponent / np.sum(train.num_bytes**exponent)
    found = np.array([drawn[name] for name in train.names]) / 4000
    assert np.all(np.abs(found - wanted) < 5 * np.sqrt(wanted / 4000))


def test_the_held_out_split_is_gone_over_once_or_more_in_one_order(config):
  examples = read(config, 'validation')
  assert [name for name, _ in examples[:8]] == list(LANGUAGES)  # something of each first
  again = read(config, 'validation')
  jax.tree.map(np.testing.assert_array_equal, [e for _, e in examples], [e for _, e in again])
  _, held_out = multilingual.get_streams(config)
  tokens = collections.Counter()
  for name, example in examples:
    tokens[name] += len(example['targets'])
  for name, length in zip(held_out.names, held_out.lengths, strict=True):
    once = 0.2 * length
    assert min(once * 2.8, 5000) <= tokens[name] <= min(once * 3.2, 5014)
  assert len(read(config, sampled_groups.TRAIN_SAMPLE)) > 8


def test_stretches_of_later_passes_are_others():
  stretches = sampled_groups.evaluation_stretches(np.array([700, 30]), raw_length=70, target_tokens=10**6)
  first = [tuple(row) for row in stretches.tolist() if row[0] == 0]
  assert len(first) == len(set(first)) == 30
  assert sum(size for _, start, size in first if start % 70 == 0) == 700
  assert [row for row in stretches.tolist() if row[0] == 1] == [[1, 0, 30]] * 3
  short = sampled_groups.evaluation_stretches(np.array([700, 30]), raw_length=70, target_tokens=28)
  assert [row[1:] for row in short.tolist() if row[0] == 0] == [[0, 70], [70, 70]]


def test_a_language_has_a_loss_of_its_own(config, rows_sharding):
  held_out = data.open_evaluation(config, rows_sharding, 5)
  assert held_out.groups == LANGUAGES
  for batch in held_out.on_host:
    for side, tokens in (('encoder', 'encoder_input_tokens'), ('decoder', 'decoder_target_tokens')):
      ids = batch[f'{side}_group_ids']
      np.testing.assert_array_equal(ids > 0, batch[tokens] > 0)
      assert ids.max() <= len(LANGUAGES)
      assert np.all(ids.max(axis=1) == ids[:, 0])


def test_losses_of_languages_add_up_to_the_loss_of_all():
  random = np.random.default_rng(0)
  logits = random.normal(size=(3, 5, 11)).astype(np.float32)
  targets, ids = (random.integers(0, count, (3, 5), dtype=np.int32) for count in (11, 5))
  weights = (ids > 0).astype(np.float32)
  nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], axis=-1)[..., 0]
  sums = losses.group_sums(logits, targets, weights, ids, 5)
  np.testing.assert_array_equal(sums['tokens'], [np.sum(ids == number) for number in range(1, 6)])
  expected = [np.sum(nats[ids == number]) for number in range(1, 6)]
  np.testing.assert_allclose(sums['cross_entropy'], expected, rtol=1e-5)
  whole = losses.token_sums(logits, targets, weights, LossConfig())
  np.testing.assert_allclose(np.sum(sums['cross_entropy']), whole.cross_entropy, rtol=1e-5)

  class Batches(list):
    groups = ('de', 'fr', 'iw', 'pt', 'none')

  zeros = {'dropped': {}, 'routed': {}, 'expert_tokens': {}, 'correct': 0.0, 'text_tokens': 1.0}
  step = lambda params, batch: {  # noqa: E731
    **zeros, 'tokens': whole.tokens, 'cross_entropy': whole.cross_entropy, 'text_cross_entropy': 0.0, 'groups': sums,
  }  # fmt: skip
  found = evaluation.evaluate(step, {}, Batches([{}, {}])).metrics
  assert found['cross_ent_loss/fr'] == pytest.approx(float(expected[1] / np.sum(ids == 2)), rel=1e-5)
  assert found['target_tokens/fr'] == 2 * np.sum(ids == 2)
  assert 'cross_ent_loss/none' not in found


def test_training_goes_on_where_it_was_on_any_streams(config, rows_sharding, tmp_path):
  config = dataclasses.replace(config, num_data_shards=2)
  source = data.TrainingSource(config, 5, rows_sharding)
  batches = [jax.tree.map(np.asarray, next(source)) for _ in range(6)]
  assert 'encoder_group_ids' not in batches[0]
  # Streams share no example.
  rows = np.concatenate([batch['encoder_input_tokens'] for batch in batches])
  assert len(np.unique(rows, axis=0)) == len(rows)
  source.save_position(tmp_path)
  expected = [jax.tree.map(np.asarray, next(source)) for _ in range(3)]
  source.close()
  other = data.TrainingSource(config, 5, rows_sharding)
  other.restore_position(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, expected, [jax.tree.map(np.asarray, next(other)) for _ in range(3)])
  other.close()


def fingerprint(config):
  module = providers.import_task_module(config)
  return providers.fingerprint(config, 0, module, providers.find_provider(config, 'train'))


def test_other_languages_are_other_data(config):
  whole = fingerprint(config)
  for changes in ({'languages': ('de', 'fr')}, {'sampling_exponent': 0.5}):
    changed = fingerprint(dataclasses.replace(config, **changes))
    with pytest.raises(ConfigError, match='corpus was'):
      providers.check_fingerprint(whole, changed)
  assert fingerprint(dataclasses.replace(config, sampling_exponent=0.3)) == whole
  two, turned = (dataclasses.replace(config, languages=codes) for codes in (('de', 'fr'), ('fr', 'de')))
  assert fingerprint(two) == fingerprint(turned)
  assert {name for name, _ in read(two, 'train', 50)} == {'de', 'fr'}


@pytest.mark.parametrize(
  ('codes', 'expected'),
  [
    (('de', 'fx'), r"languages has 'fx', which is no language of .*Did you mean 'fr'\? It has 8: de, en"),
    (('he',), r"languages has 'he', .*Did you mean 'iw'\?"),
    (('pt_BR',), r"languages has 'pt_BR', .*Did you mean 'pt'\?"),
    (('sm',), r"languages has 'sm', a language without text in multilingual_span_corruption; leave it out"),
    ((), 'languages is .*must name languages by their codes'),
    (('de', 'de'), 'languages is .*each once'),
  ],
)
def test_languages_that_are_not_there(config, codes, expected):
  with pytest.raises(ConfigError, match=expected):
    providers.import_task_module(dataclasses.replace(config, languages=codes))


def test_languages_for_a_task_without(config):
  for changes in ({'languages': ('de',)}, {'sampling_exponent': 1.0}):
    with pytest.raises(ConfigError, match=r'tasks of tasks.docstrings have no languages to choose'):
      providers.import_task_module(dataclasses.replace(config, task_module='tasks.docstrings', **changes))
  with pytest.raises(ConfigError, match=r'sampling_exponent is 1.5; it must be from 0'):
    dataclasses.replace(config, sampling_exponent=1.5)
  settings = {'mixture_or_task_name': language_id.NAME, 'sampling_exponent': 0.3}
  with pytest.raises(ConfigError, match=r'takes every text once'):
    providers.import_task_module(dataclasses.replace(config, **settings))


def test_language_identification(config, monkeypatch):
  monkeypatch.setattr(language_id, 'MAX_TEXTS', {corpus.TRAIN: 40, corpus.VALIDATION: 20})
  config = dataclasses.replace(config, mixture_or_task_name=language_id.NAME, languages=('de', 'iw', 'pt'))
  providers.import_task_module(config)
  task = seqio.get_mixture_or_task(language_id.NAME)
  examples = {
    split: [
      (example['inputs_pretokenized'].decode(), example['targets_pretokenized'].decode())
      for example in task.get_dataset(
        {'inputs': 200, 'targets': 8}, split, shuffle=False, try_in_mem_cache=False
      ).as_numpy_iterator()
    ]
    for split in ('train', 'validation')
  }
  counts = collections.Counter(code for _, code in examples['train'])
  assert counts == {'de': 40, 'iw': 40, 'pt': 40}
  assert all(('Nachricht' in text or 'ປະເທດ' in text) == (code == 'de') for text, code in examples['train'])
  [metric] = task.metric_fns
  targets = [task.postprocess_fn(code, example={}, is_target=True) for _, code in examples['validation']]
  found = metric(targets, ['de'] * len(targets))
  assert found['accuracy/de'] == 100
  assert found['accuracy/pt'] == 0
  assert found['accuracy_mean_over_groups'] == pytest.approx(100 / 3)
  assert 'accuracy' in found
  fingerprint(config)


def test_metrics_of_translation_by_language():
  example = {'inputs_pretokenized': b'translate English to Portuguese (BR): Yes: it is'}
  assert answers.translated('sim', example, is_target=True) == {'value': 'sim', 'group': 'Portuguese (BR)'}
  assert answers.translated('sim', example) == 'sim'
  metric = metrics.by_group(metrics.chrf, metrics.bleu, metrics.accuracy)
  pairs = {'German': 'das ist ein kleines Haus', 'Thai': 'บ้านหลังเล็กหลังหนึ่ง'}
  targets = [{'value': text, 'group': language} for language, text in pairs.items()]
  found = metric(targets, list(pairs.values()))
  for name in ('bleu/German', 'bleu/Thai', 'chrf_mean_over_groups', 'chrf', 'accuracy/Thai'):
    assert found[name] == pytest.approx(100)
  found = metric(targets, ['das ist ein Haus', ''])
  assert found['bleu/Thai'] == found['chrf/Thai'] == 0
  assert found['chrf_mean_over_groups'] == found['chrf/German'] / 2 > 0


def test_bleu_counts_words_or_characters():
  assert metrics.bleu(['a b c d e'], ['a b c d f'])['bleu'] == pytest.approx(
    100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
  )
  # Without spaces the words are characters: four of five are right.
  assert metrics.bleu(['小房子很美'], ['小房子很大'])['bleu'] == pytest.approx(
    100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
  )


class FakeC4:
  """Two languages with text, and one with none."""

  SIZES = {'mc4.de': 10_000, 'mc4.hi_Latn': 100, 'mc4.sm': 0}


@pytest.fixture
def fake_c4(monkeypatch):
  """Puts a little text where mC4 would be."""
  from switch_jax.data.quiet_tensorflow import tf

  def get_dataset(self, split, shuffle=True, seed=None, shard_info=None):
    language = self.tfds_dataset._split_map[split].removesuffix('-validation')
    text = ' '.join(f'{language} {i}' for i in range(60))
    return tf.data.Dataset.from_tensors({'text': text}).repeat(5)

  def num_input_examples(self, split):
    return FakeC4.SIZES[f'mc4.{self.tfds_dataset._split_map[split].removesuffix("-validation").replace("-", "_")}']

  monkeypatch.setattr(mc4.TfdsSource, 'get_dataset', get_dataset)
  monkeypatch.setattr(mc4.TfdsSource, 'num_input_examples', num_input_examples)
  monkeypatch.setattr(mc4.TfdsSource, 'list_shards', lambda self, split: [split])


def mc4_config(config, **changes):
  changes = {'mixture_or_task_name': mc4.MIXTURE, 'vocabulary': 'bytes', 'languages': ('hi-Latn', 'de'), **changes}
  return dataclasses.replace(config, **changes)


def test_mc4_has_107_tasks_of_101_languages():
  from tensorflow_datasets.text import c4 as tfds_c4

  assert tuple(tfds_c4.MC4_LANGUAGES) == languages.MC4
  assert len(languages.MC4) == 107
  assert len({code.partition('-')[0] for code in languages.MC4}) == 101


def test_mc4_is_mixed_by_size_to_a_power(config, fake_c4, rows_sharding):
  config = mc4_config(config)
  fingerprint(config)
  mixture = seqio.get_mixture_or_task(mc4.MIXTURE)
  assert [task.name for task in mixture.tasks] == ['mc4.de', 'mc4.hi_Latn']
  de, hindi = (mixture.get_rate(task) for task in mixture.tasks)
  assert de / hindi == pytest.approx((10_000 / 100) ** 0.3)
  held_out = data.open_evaluation(config, rows_sharding, 4)
  assert held_out.groups == ('de', 'hi-Latn')
  vocabulary = data.vocabulary_of(config)
  for batch in held_out.on_host:
    for tokens, ids in zip(batch['decoder_target_tokens'], batch['decoder_group_ids'], strict=True):
      text = vocabulary.decode([int(t) for t in tokens[ids == 1] if t < 259])
      assert 'hi' not in text


def test_mc4_in_full_has_the_vocabulary_of_mt5(config):
  config = mc4_config(config, vocabulary=None, languages=None, mixture_or_task_name='mc4.zu')
  providers.import_task_module(config)
  assert len(seqio.MixtureRegistry.get(mc4.MIXTURE).tasks) == 107
  vocabulary = seqio.get_mixture_or_task('mc4.zu').output_features['targets'].vocabulary
  assert vocabulary.sentencepiece_model_file == data.vocabularies.MT5_VOCABULARY
  assert vocabulary.extra_ids == 0  # they are among its pieces
  with pytest.raises(ConfigError, match='cannot be read'):
    providers.find_provider(config, 'train')


def test_a_mixture_with_weight_zero(config, fake_c4):
  config = mc4_config(config, languages=('sm',))
  providers.import_task_module(config)
  with pytest.raises(ConfigError, match=r'mixture mc4_span_corruption has the weight zero: .*mc4\.sm.*positive weight'):
    providers.find_provider(config, 'train')


def test_mc4_that_is_not_prepared(config):
  config = mc4_config(config, languages=('de',))
  with pytest.raises(ConfigError, match=r'c4/multilingual:3.1.0 is not in .*TFDS_DATA_DIR'):
    fingerprint(config)
