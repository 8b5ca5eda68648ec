"""Every field is compared with its annotation, and what gin hands over is turned into it where no number changes."""

import dataclasses
from typing import Literal

import pytest

from switch_jax.config import Checked, ConfigError, MoeConfig, first_line, suggest, unknown_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner(Checked):
  rate: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer(Checked):
  count: int = 1
  layers: int | tuple[int, ...] = 2
  kind: Literal['one', 'other'] = 'one'
  table: dict[str, str | tuple[str, ...] | None] = dataclasses.field(default_factory=dict)
  inner: Inner | None = None


@pytest.mark.parametrize(
  ('field', 'given', 'kept'),
  [
    ('layers', [1, 3], (1, 3)),
    ('layers', 4, 4),
    ('table', {'a': ['x', 'y'], 'b': None}, {'a': ('x', 'y'), 'b': None}),
    ('inner', None, None),
  ],
)
def test_values_become_what_the_annotation_says(field, given, kept):
  value = getattr(Outer(**{field: given}), field)
  assert (value, type(value)) == (kept, type(kept))


def test_integers_are_numbers():
  rate = Inner(rate=1).rate
  assert (rate, type(rate)) == (1.0, float)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(count=1e3), r'Outer.count is 1000.0; it must be an integer. Write 1000\.$'),
    (dict(count=1.5), r'it must be an integer\.$'),
    (dict(count=True), 'count is True; it must be an integer'),
    (dict(layers=(1, 2.5)), r'layers is \(1, 2.5\); it must be an integer or a tuple of an integer'),
    (dict(kind='othr'), r"it must be one of 'one', 'other'\. Did you mean 'other'\?"),
    (dict(table={1: 'x'}), 'it must be a dict of a string to a string or a tuple of a string or None'),
    (dict(table=['x']), 'it must be a dict of'),
    (dict(inner=0.5), r'it must be a config.Inner or None'),
  ],
)
def test_other_values_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    Outer(**fields)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), True, '1', None])
def test_what_is_no_number(value):
  with pytest.raises(ConfigError, match='it must be a number'):
    Inner(rate=value)


def test_json_round_trip():
  outer = Outer(layers=(1, 3), table={'a': ('x', 'y')}, inner=Inner(rate=0.25))
  assert outer.to_json() == {
    'count': 1,
    'layers': [1, 3],
    'kind': 'one',
    'table': {'a': ['x', 'y']},
    'inner': {'rate': 0.25},
  }
  assert Outer.from_json(outer.to_json()) == outer
  with pytest.raises(ConfigError, match=r"no field 'num_expert'\. Did you mean 'num_experts'"):
    MoeConfig.from_json({'num_expert': 4})


def test_unknown_fields_by_dotted_name():
  known = Outer().to_json()
  assert unknown_fields(Outer, known) == []
  more = {**known, 'new': 1, 'inner': {'rate': 0.5, 'slope': 2}, 'table': {'b': 1}}
  assert sorted(unknown_fields(Outer, more)) == ['inner.slope', 'new']
  assert unknown_fields(Outer, {'inner': None}) == []


def test_suggestions_are_near_or_none():
  assert suggest('enkoder', ['decoder', 'encoder']) == " Did you mean 'encoder'?"
  assert suggest('enkoder', ['mesh']) == ''


@pytest.mark.parametrize(
  ('said', 'line'),
  [
    ('\nno such file\nat line 3', 'no such file'),
    ('', 'OSError'),
    ('x' * 301, 'x' * 300 + '...'),
    ("Error opening 'a' and 'b': No space left on device [os_error_code='28'] [source ...]", 'No space left on device'),
  ],
)
def test_first_line_of_an_error(said, line):
  assert first_line(OSError(said)) == line
