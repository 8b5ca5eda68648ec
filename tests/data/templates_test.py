"""Inputs of cells, and guesses of columns."""

import datetime
import decimal

import pytest

from switch_jax.config import ConfigError
from switch_jax.data import templates


def test_a_template_is_filled():
  assert templates.fields_of('{a b} and {c}, {{{a b}}}') == ('a b', 'c')
  assert templates.fill(' {a b} and {c}, {{{a b}}} ', {'a b': 'x', 'c': '{y}'}) == 'x and {y}, {x}'
  assert templates.fill(templates.of_column('text'), {'text': 'x'}) == 'x'


@pytest.mark.parametrize('template', ['{a', 'a}', '{}', 'no column', '{a:>5}', '{a!r}'])
def test_templates_that_cannot_be_read(template):
  with pytest.raises(ConfigError, match=r'^TEMPLATE is .*; (write columns|it must name columns)'):
    templates.fields_of(template)
  with pytest.raises(ConfigError, match='rename it'):
    templates.of_column('a:b')


def test_unknown_columns_are_named_with_those_there_are():
  said = r"^TEMPLATE asks for the column 'txt', which a\.csv does not have; its columns are 'id', 'text'\. Did you mean"
  with pytest.raises(ConfigError, match=said):
    templates.check_columns('TEMPLATE', ['id', 'txt'], ['id', 'text'], 'a.csv')


@pytest.mark.parametrize(
  ('columns', 'expected'),
  [
    (['id', 'Text', 'Label'], ('Text', 'Label')),
    (['label', 'whatever'], ('whatever', 'label')),
    (['text', 'whatever'], ('text', 'whatever')),
    (['source', 'answer', 'question'], ('question', 'answer')),
    (['premise', 'hypothesis', 'label'], (None, 'label')),
    (['a', 'b', 'c'], (None, None)),
    (['text'], ('text', None)),
  ],
)
def test_guesses(columns, expected):
  assert templates.guess(columns) == expected
  assert templates.guess(['a', 'text', 'label'], 'a') == ('text', 'a')


def test_cells_as_text():
  for cell, text in (
    (' a\r\nb ', 'a\nb'), ('nan', None), ('', None), (None, None), (float('nan'), None), (True, 'True'), (3, '3'),
    (2.5, '2.5'), (decimal.Decimal('1.20'), '1.20'), (datetime.date(2020, 1, 2), '2020-01-02'), ('\ud800', '?'),
  ):  # fmt: skip
    assert templates.to_text(cell) == text
  with pytest.raises(ValueError, match='a list, which is no text'):
    templates.to_text(['a'])
  with pytest.raises(ValueError, match='a bytes, which is no text'):
    templates.to_text(b'a')
