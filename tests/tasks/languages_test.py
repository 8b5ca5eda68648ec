"""The languages of a configuration: checked against those there are."""

import pytest

from switch_jax.config import ConfigError
from switch_jax.tasks import languages

THERE = ('de', 'en', 'es', 'fr', 'iw', 'lo', 'no', 'pt')


def test_mc4_has_107_tasks_of_101_languages():
  from tensorflow_datasets.text import c4 as tfds_c4

  assert tuple(tfds_c4.MC4_LANGUAGES) == languages.MC4
  assert len(languages.MC4) == 107
  assert len({code.partition('-')[0] for code in languages.MC4}) == 101


def test_languages_are_in_the_order_of_those_there_are():
  assert languages.choose(('pt', 'de', 'iw'), iter(THERE), 'some_task') == ['de', 'iw', 'pt']


@pytest.mark.parametrize(
  ('codes', 'expected'),
  [
    (('de', 'fx'), r"languages has 'fx', which is no language of some_task\. Did you mean 'fr'\? It has 8: de, en, .*"),
    (('he',), r"languages has 'he', .*Did you mean 'iw'\?"),
    (('pt_BR',), r"languages has 'pt_BR', .*Did you mean 'pt'\?"),
    (('sm',), r"languages has 'sm', a language without text in some_task; leave it out"),
    (('de-Latn',), r"languages has 'de-Latn', .*Did you mean 'de'\?"),
    (('xyz',), r"languages has 'xyz', which is no language of some_task\. It has 8"),
  ],
)
def test_languages_that_are_not_there(codes, expected):
  with pytest.raises(ConfigError, match=expected):
    languages.choose(codes, THERE, 'some_task')


def test_every_other_code_leads_to_one_of_mc4():
  assert set(languages.SAME.values()) <= set(languages.MC4)
  assert not set(languages.SAME) & set(languages.MC4)
