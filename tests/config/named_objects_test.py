"""Names of the user's objects."""

import pytest

from switch_jax.config import ConfigError
from switch_jax.config.named_objects import failing, is_object_name, load_object


@pytest.mark.parametrize('text', ['a:b', 'a.b:c.d', '_a1:b_2'])
def test_names_of_objects(text):
  assert is_object_name(text)


@pytest.mark.parametrize('text', ['a', 'a:', ':b', 'a:b:c', 'a-b:c', 'a:b()', '1:a', 'a.:b'])
def test_what_is_none(text):
  assert not is_object_name(text)


def test_objects_in_objects():
  assert load_object('os:path.join', 'X.y')('a', 'b') == 'a/b'


def test_the_line_of_the_users_code_is_named(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'module_that_exits.py').write_text('import sys\nsys.exit("no data")\n')
  message = r'X.y is .module_that_exits:f., .* \(SystemExit: no data; module_that_exits.py, line 2\); mend it there'
  with pytest.raises(ConfigError, match=message):
    load_object('module_that_exits:f', 'X.y')


def test_our_own_errors_stay_as_they_are():
  with pytest.raises(ConfigError, match=r'^as it is$'), failing('x'):
    raise ConfigError('as it is')
