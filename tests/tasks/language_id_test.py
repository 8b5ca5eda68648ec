"""Language identification on the multilingual corpus that the test writes."""

import collections
import dataclasses

import pytest

from switch_jax.config import ConfigError
from switch_jax.data import corpus, providers
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.tasks import language_id

pytestmark = pytest.mark.usefixtures('multilingual_packages')


def test_language_identification(multilingual_config, monkeypatch):
  monkeypatch.setattr(language_id, 'MAX_TEXTS', {corpus.TRAIN: 40, corpus.VALIDATION: 20})
  config = dataclasses.replace(multilingual_config, mixture_or_task_name=language_id.NAME, languages=('de', 'iw', 'pt'))
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
  other = dataclasses.replace(config, languages=('de', 'iw'))
  assert language_id.corpus_digest(config) != language_id.corpus_digest(other)


class Texts:
  """Stands in for the corpus: lines by split."""

  def __init__(self, **lines):
    self.lines = lines

  def paragraphs(self, split):
    return [f'{language}\t{text}' for language, text in self.lines[split]]


def test_texts_that_are_short_or_stand_in_several_languages_are_left_out(monkeypatch):
  monkeypatch.setattr(language_id, 'MAX_TEXTS', {corpus.TRAIN: 3, corpus.VALIDATION: 1})
  long = 'ein sehr langer Text ' * 20
  train = [('de', f'Das ist die Nummer {i} von vielen.') for i in range(9)]
  same = [('de', 'Das ist ein Problem!'), ('lb', 'das ist ein problem')]
  found = language_id.choose_texts(
    Texts(train=[*train, *same, ('fr', 'quatorze lettr'), ('fr', 'quinze lettress')], validation=[('de', long)])
  )
  counts = collections.Counter(language for language, _ in found['train'])
  assert counts == {'de': 3, 'fr': 1}
  assert not {text for _, text in found['train']} & {text for _, text in same}
  assert found['validation'] == [('de', long[:200])]


def test_an_exponent_is_refused(multilingual_config):
  changes = {'mixture_or_task_name': language_id.NAME, 'sampling_exponent': 0.3}
  with pytest.raises(ConfigError, match=r'sampling_exponent is 0.3, but .*takes every text once'):
    language_id.register(dataclasses.replace(multilingual_config, **changes))
