"""Tokens by group: whole or not there, and made once."""

import json

import numpy as np
import pytest

from switch_jax.config import ConfigError
from switch_jax.data import token_streams
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.data.token_streams import TokenStreams

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)
TEXTS = (('de', 'für'), ('de', 'x'), ('fr', ''), ('lo', 'abc'))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """A cache of this test's own."""
  monkeypatch.setenv('SWITCH_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def assert_same(a, b):
  """Checks that two have the same tokens."""
  assert a.names == b.names
  for name in ('tokens', 'starts', 'num_bytes'):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_tokens_of_a_group_stand_together_with_a_newline_after_each_text():
  streams = TokenStreams.of_texts(TEXTS, VOCABULARY)
  assert streams.names == ('de', 'fr', 'lo')
  assert streams.tokens.dtype == np.uint16
  assert streams.tokens.tolist() == VOCABULARY.encode('für\nx\n\nabc\n')
  assert streams.lengths.tolist() == streams.num_bytes.tolist() == [7, 1, 4]
  with pytest.raises(ValueError, match='must come together'):
    TokenStreams.of_texts([*TEXTS, ('de', 'again')], VOCABULARY)


def test_bytes_are_encoded_as_the_vocabulary_does():
  class Own(seqio.ByteVocabulary):
    """The same tokens the slow way."""

  assert_same(TokenStreams.of_texts(TEXTS, VOCABULARY), TokenStreams.of_texts(TEXTS, Own(extra_ids=100)))


def test_groups_are_selected_in_the_order_asked_for():
  streams = TokenStreams.of_texts(TEXTS, VOCABULARY).select(['lo', 'de'])
  assert_same(streams, TokenStreams.of_texts([TEXTS[3], *TEXTS[:2]], VOCABULARY))


def test_a_folder_is_whole_or_not_there(tmp_path):
  streams = TokenStreams.of_texts(TEXTS, VOCABULARY)
  assert TokenStreams.load(tmp_path) is None
  streams.save(tmp_path)
  assert_same(TokenStreams.load(tmp_path), streams)
  summary = json.loads((tmp_path / 'groups.json').read_text())
  (tmp_path / 'groups.json').write_text(json.dumps(summary | {'starts': [0, 7, 8, 13]}))
  assert TokenStreams.load(tmp_path) is None


def test_texts_are_tokenised_once(cache):
  calls = []

  def texts():
    calls.append(None)
    return iter(TEXTS)

  first = token_streams.get_token_streams('digest', texts, VOCABULARY)
  assert_same(token_streams.get_token_streams('digest', texts, VOCABULARY), first)
  assert len(calls) == 1
  token_streams.get_token_streams('digest', texts, seqio.ByteVocabulary(extra_ids=0))
  token_streams.get_token_streams('other', texts, VOCABULARY)
  assert len(calls) == 3
  assert len(list((cache / 'tokens').iterdir())) == 3  # and no draft is left


def test_damaged_tokens_are_made_again(cache):
  first = token_streams.get_token_streams('digest', lambda: iter(TEXTS), VOCABULARY)
  (folder,) = (cache / 'tokens').iterdir()
  (folder / 'tokens.npy').write_bytes(b'')
  assert_same(token_streams.get_token_streams('digest', lambda: iter(TEXTS), VOCABULARY), first)
  assert_same(TokenStreams.load(folder), first)


def test_a_cache_that_cannot_be_written_is_said(cache):
  cache.write_text('a file where the folder should be')
  with pytest.raises(ConfigError, match=r'cache folder .* cannot be written .*SWITCH_JAX_CACHE'):
    token_streams.get_token_streams('digest', lambda: iter(TEXTS), VOCABULARY)
