"""mC4: 107 tasks and their mixture, on a little text where the data set would be."""

import dataclasses

import pytest

from switch_jax import data
from switch_jax.config import ConfigError
from switch_jax.data import providers
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.tasks import mc4


@pytest.fixture
def config(multilingual_config):
  return multilingual_config


class FakeC4:
  """Two languages with text, and one with none."""

  SIZES = {'mc4.de': 10_000, 'mc4.hi_Latn': 100, 'mc4.sm': 0}


@pytest.fixture
def fake_c4(monkeypatch):
  """Puts a little text where mC4 would be."""

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


def test_mc4_is_mixed_by_size_to_a_power(config, fake_c4, rows_sharding):
  config = mc4_config(config)
  providers.import_task_module(config)
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
  mc4.register(config)
  with pytest.raises(ConfigError, match=r'c4/multilingual:3.1.0 is not in .*TFDS_DATA_DIR'):
    mc4.corpus_digest(config)


def test_the_digest_follows_the_data_of_what_is_trained_on(config, fake_c4, monkeypatch):
  whole, one = mc4_config(config), mc4_config(config, mixture_or_task_name='mc4.de')
  mc4.register(whole)
  digests = [mc4.corpus_digest(c) for c in (whole, one, mc4_config(config, languages=('de',)))]
  assert len(set(digests)) == 2  # one task alone is the mixture of that task
  monkeypatch.setitem(FakeC4.SIZES, 'mc4.hi_Latn', 101)
  assert mc4.corpus_digest(whole) != digests[0]
  assert mc4.corpus_digest(one) == digests[1]


def test_names():
  assert mc4.task_name('bg-Latn') == 'mc4.bg_Latn'
  assert [mc4.is_name(name) for name in ('mc4.de', 'mc4_span_corruption', 'multilingual_span_corruption')] == [
    True,
    True,
    False,
  ]
