"""What metrics are given: targets and predictions made of texts."""

import pytest

from switch_jax.config import ConfigError
from switch_jax.tasks import answers


def test_labels_outside_the_set():
  label = answers.label(('no', 'yes'))
  assert [label('yes'), label('yes '), label('')] == [1, -1, -1]
  assert label('no', is_target=True) == 0
  with pytest.raises(ConfigError, match="'maybe' is not one of the labels no, yes; check"):
    label('maybe', is_target=True)
  with pytest.raises(ConfigError, match='without labels'):
    label('<unk>', is_target=True)
  assert (answers.number('3.8'), answers.number('much')) == (3.8, -1.0)
  with pytest.raises(ConfigError, match="'much' is not a number"):
    answers.number('much', is_target=True)


@pytest.mark.parametrize(
  ('referent', 'prediction', 'expected'),
  [
    ('Bob', 'bob', 1),
    ('the fuzzy bunny', 'bunny', 1),
    ('bunny', 'a fuzzy bunny', 1),
    ("Bob's hat", 'Bob', 0),
    ('Tom', 'Mitchell', 0),
    ('Tom', 'the', -1),
    ('Tom', '', -1),
  ],
)
def test_referents_of_winograd_schemas(referent, prediction, expected):
  assert answers.wsc(prediction, {'targets_pretokenized': referent.encode()}) == expected


def test_the_referent_that_is_right_comes_from_the_example():
  for label in (0, 1):
    assert answers.wsc('any text', {'label': label}, is_target=True) == label


def test_right_answers_of_an_example():
  example = {'answers': [b'Rome', 'Roma']}
  assert answers.single_answer('Rome', example, is_target=True) == ['Rome']
  assert answers.any_answer('Rome', example, is_target=True) == ['Rome', 'Roma']
  for postprocess in (answers.single_answer, answers.any_answer):
    assert postprocess('a guess', example, is_target=False) == 'a guess'


def test_answers_know_the_question_they_belong_to():
  example = {'answers': [b'Rome'], 'idx/passage': 3, 'idx/query': 5}
  assert answers.record('Rome', example, is_target=True) == {'value': ['Rome'], 'group': (3, 5)}
  assert answers.record('a guess', example) == {'value': 'a guess'}
  example = {'idx/paragraph': 3, 'idx/question': 5, 'idx/answer': 9}
  assert answers.multirc('True', example, is_target=True) == {'value': 1, 'group': (3, 5)}
  assert answers.multirc('False', example) == {'value': 0}
  assert answers.multirc('perhaps', example) == {'value': -1}


def test_targets_of_a_group():
  assert answers.in_its_own_group('de', {}, is_target=True) == {'value': 'de', 'group': 'de'}
  assert answers.in_its_own_group('fr', {}) == 'fr'
  example = {'inputs_pretokenized': b'translate English to Portuguese (BR): Yes: it is'}
  assert answers.translated('sim', example, is_target=True) == {'value': 'sim', 'group': 'Portuguese (BR)'}
  assert answers.translated('sim', example) == 'sim'
