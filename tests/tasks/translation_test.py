"""Translation from message catalogs that the test writes."""

import json
import struct

import pytest

from switch_jax.config import ConfigError, DataConfig
from switch_jax.data import corpus, providers
from switch_jax.tasks import installed_text, translation


def catalog(messages, order='<'):
  """Returns a compiled catalog."""
  texts = [*messages, *messages.values()]
  start = 28 + 16 * len(messages)
  table, data = [], b''
  for text in (text.encode() for text in texts):
    table.append(struct.pack(f'{order}2I', len(text), start + len(data)))
    data += text + b'\0'
  header = struct.pack(f'{order}7I', 0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, 0)
  return header + b''.join(table) + data


PORTUGUESE = {'alpha_3': 'por', 'alpha_2': 'pt', 'name': 'Portuguese'}
LEFT_OUT = {
  'Same': 'Same',
  '%d items': '%d Dinge',
  '': 'head',
  'long ' * 40: 'zu lang',
  '...': ',',
  'one minute': '%d Minuten',
}
MESSAGES = {f'Message of kind {i}': f'Nachricht {i}' for i in range(300)}


@pytest.fixture(autouse=True)
def packages(tmp_path, monkeypatch):
  """Django with two languages, pycountry, and a cache, all of this test's own."""
  for locale, extra in (('de', {'Yes, please': 'Ja, bitte'} | LEFT_OUT), ('pt_BR', {})):
    folder = tmp_path / 'django' / 'locale' / locale / 'LC_MESSAGES'
    folder.mkdir(parents=True)
    (folder / 'django.mo').write_bytes(catalog(MESSAGES | extra))
  (tmp_path / 'pycountry' / 'databases').mkdir(parents=True)
  (tmp_path / 'pycountry' / 'databases' / 'iso639-3.json').write_text(
    json.dumps({'639-3': [{'alpha_3': 'deu', 'alpha_2': 'de', 'name': 'German'}, PORTUGUESE]})
  )
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(installed_text, 'is_installed', lambda module: (tmp_path / module).exists())
  monkeypatch.setattr(installed_text, 'package_folder', lambda module, distribution: tmp_path / module)
  for function in (translation.read_pairs, translation._language_names):
    function.cache_clear()
  yield tmp_path
  for function in (translation.read_pairs, translation._language_names):
    function.cache_clear()


def test_catalogs_of_both_byte_orders():
  messages = {'month\x04May': 'Mai', 'one item\0%d items': 'ein Ding\0%d Dinge', 'Grüße': 'é'}
  for order in '<>':
    assert translation.read_catalog(catalog(messages, order)) == {'May': 'Mai', 'one item': 'ein Ding', 'Grüße': 'é'}
  with pytest.raises(ValueError, match='no message catalog'):
    translation.read_catalog(b'something else')
  with pytest.raises(ValueError, match='no message catalog'):
    translation.read_catalog(catalog(messages)[:60])


def test_what_is_left_out():
  assert set(translation.read_pairs()['de']) - set(MESSAGES) == {'Yes, please'}


def test_another_package_adds_messages_to_the_languages_of_django(packages):
  before = translation.get_corpus().digest
  for locale, messages in (
    ('pt_PT', {'Sign in': 'Entrar'}),
    (
      'de',
      {
        'Sign in': 'Anmelden',
        'Yes, please': 'Jawohl',
        'Go to ${place}': 'Nach ${place}',
        'label_save': 'Sichern',
        'front-text': 'Vorne',
      },
    ),
    ('zh_CN', {'Sign in': 'unknown to Django'}),
    ('pt_BR', {'sign in!': 'entrar!'}),
    ('en_GB', {'Sign in': 'Sign in, please'}),
  ):
    folder = packages / 'allauth' / 'locale' / locale / 'LC_MESSAGES'
    folder.mkdir(parents=True)
    (folder / 'django.mo').write_bytes(catalog(messages))
  translation.read_pairs.cache_clear()
  pairs = translation.read_pairs()
  assert list(pairs) == ['de', 'pt_BR']
  assert {message: text for message, text in pairs['de'].items() if message not in MESSAGES} == {
    'Sign in': 'Anmelden',
    'Yes, please': 'Ja, bitte',
  }
  assert pairs['pt_BR']['sign in!'] == 'entrar!'
  assert translation.choose_split('Sign in') == translation.choose_split('sign in!')
  assert translation.get_corpus().digest != before


def test_a_message_is_held_out_in_every_language():
  made = translation.get_corpus()
  sides = {
    split: {line.split('\t')[0].split(': ', 1)[1] for line in made.paragraphs(split)}
    for split in ('train', 'validation')
  }
  assert sides['train'].isdisjoint(sides['validation'])
  assert 10 < len(sides['validation']) < 60
  lines = list(made.paragraphs(corpus.VALIDATION))
  assert len(lines) >= 2 * len(sides['validation']) - 1
  assert any(line.startswith('translate English to Portuguese (BR): ') for line in lines)
  assert translation.choose_split('Yes, please') == translation.choose_split('yes please!')


def test_languages_by_name():
  def register(task):
    translation.register(
      DataConfig(mixture_or_task_name=task, feature_lengths={'inputs': 32, 'targets': 32}, batch_size=2)
    )

  register('message_translation_de')
  from switch_jax.data.quiet_tensorflow import seqio

  examples = seqio.TaskRegistry.get('message_translation_de').get_dataset(
    {'inputs': 64, 'targets': 32}, split='train', shuffle=False
  )
  example = next(examples.as_numpy_iterator())
  assert example['inputs_pretokenized'].startswith(b'translate English to German: ')
  with pytest.raises(ConfigError, match=r"no messages in 'pt'.*de, pt_BR"):
    register('message_translation_pt')


def test_some_languages_of_all():
  def make(languages, task=translation.NAME, **fields):
    lengths = {'inputs': 32, 'targets': 32}
    return DataConfig(
      mixture_or_task_name=task, feature_lengths=lengths, batch_size=2, languages=languages,
      task_module='switch_jax.tasks.translation', **fields,
    )  # fmt: skip

  lines = list(translation.get_corpus(('pt_BR',)).paragraphs(corpus.TRAIN))
  assert {line.partition(':')[0] for line in lines} == {'translate English to Portuguese (BR)'}
  assert translation.corpus_digest(make(('de',))) != translation.corpus_digest(make(('pt_BR', 'de')))
  assert translation.corpus_digest(make(('de', 'pt_BR'))) == translation.corpus_digest(make(None))
  for wrong, expected in (
    (make(('de', 'pt_BRR')), "languages has 'pt_BRR', .*Did you mean 'pt_BR'"),
    (make(('de',), 'message_translation_de'), 'alone takes languages'),
    (make(None, sampling_exponent=0.3), 'takes every pair once'),
  ):
    with pytest.raises(ConfigError, match=expected):
      providers.import_task_module(wrong)


def test_damaged_catalogs(packages):
  (packages / 'django' / 'locale' / 'de' / 'LC_MESSAGES' / 'django.mo').write_bytes(b'nothing')
  with pytest.raises(ConfigError, match=r'django.mo is no message catalog.*reinstall django'):
    translation.read_pairs()
