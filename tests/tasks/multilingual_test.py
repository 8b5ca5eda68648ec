"""Pre-training on the multilingual corpus, from packages that the test writes."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from switch_jax import data
from switch_jax.config import ConfigError, LossConfig
from switch_jax.data import providers, sampled_groups
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.model import losses
from switch_jax.tasks import multilingual
from switch_jax.training import evaluation
from switch_jax.training.sums import Sums

pytestmark = pytest.mark.usefixtures('multilingual_packages')
LANGUAGES = ('de', 'en', 'es', 'fr', 'iw', 'lo', 'no', 'pt')


@pytest.fixture
def config(multilingual_config):
  return multilingual_config


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

  step = lambda params, batch: Sums(whole, {}, groups=sums)  # noqa: E731
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
    ((), 'languages is .*must name languages by their codes'),
    (('de', 'de'), 'languages is .*each once'),
  ],
)
def test_languages_that_are_not_there(config, codes, expected):
  with pytest.raises(ConfigError, match=expected):
    providers.import_task_module(dataclasses.replace(config, languages=codes))


def test_languages_for_a_task_without(config):
  for changes in ({'languages': ('de',)}, {'sampling_exponent': 1.0}):
    with pytest.raises(ConfigError, match=r'tasks of switch_jax.tasks.docstrings have no languages to choose'):
      providers.import_task_module(dataclasses.replace(config, task_module='switch_jax.tasks.docstrings', **changes))
  with pytest.raises(ConfigError, match=r'sampling_exponent is 1.5; it must be from 0'):
    dataclasses.replace(config, sampling_exponent=1.5)
