"""The multilingual corpus, from packages that the test writes: its languages, its split, and what fills it up."""

import collections
import re

import pytest

from switch_jax.data import corpus
from switch_jax.tasks import multilingual_text, translation

pytestmark = pytest.mark.usefixtures('multilingual_packages')
LANGUAGES = ('de', 'en', 'es', 'fr', 'iw', 'lo', 'no', 'pt')


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


def test_codes_of_locales():
  locales = {'pt_BR': 'pt', 'nb': 'no', 'nn_NO': 'no', 'sr@latin': 'sr', 'he': 'iw', 'zh-Hans': 'zh', 'de': 'de'}
  assert {locale: multilingual_text.language_of(locale) for locale in locales} == locales
