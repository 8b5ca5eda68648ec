"""`<extra_id_0>` in texts of bytes, both ways, for each of the three orders that sentinels have."""

import pytest

from switch_jax.config import ConfigError
from switch_jax.data import decode_tokens, encode_text, make_vocabulary
from switch_jax.data.quiet_tensorflow import seqio
from switch_jax.data.sentinels import sentinel_ids
from switch_jax.data.span_corruption import check_sentinels


# Of Hugging Face: what transformers 5.23's ByT5Tokenizer gives for 'a<extra_id_0> b<extra_id_1>c<extra_id_124>'.
@pytest.mark.parametrize(
  ('name', 'first', 'second', 'last', 'id_of_last'),
  [('bytes', 358, 357, 99, 259), ('byt5', 258, 257, 10, 248), ('byt5_huggingface', 259, 260, 124, 383)],
)
def test_both_ways(name, first, second, last, id_of_last):
  vocabulary = make_vocabulary(name)
  text = f'a<extra_id_0> b<extra_id_1>c<extra_id_{last}>'
  tokens = [100, first, 35, 101, second, 102, id_of_last]
  assert encode_text(vocabulary, text) == tokens
  assert decode_tokens(vocabulary, tokens) == text
  assert decode_tokens(vocabulary, [*tokens, 1, first, 100]) == text


@pytest.mark.parametrize(
  'text',
  ['', 'naïve 日本語', '<extra_id_100>', '<extra_id_01>', '<extra_id_>', '<extra_id_-1>', '<extra_id_' + '9' * 5000],
)
def test_what_is_no_sentinel_stays_text(text):
  vocabulary = make_vocabulary('bytes')
  assert encode_text(vocabulary, text) == [byte + 3 for byte in text.encode()]
  assert decode_tokens(vocabulary, encode_text(vocabulary, text)) == text


def test_sentinels_between_bytes_of_one_character():
  vocabulary = make_vocabulary('bytes')
  first, second = encode_text(vocabulary, 'é')
  assert decode_tokens(vocabulary, [first, 358, second, 0, 2]) == '<extra_id_0>'
  assert encode_text(vocabulary, '<extra_id_3><extra_id_3>') == [355, 355]


def test_ids_are_those_that_span_corruption_counts_down_from():
  vocabulary = make_vocabulary('bytes')
  assert sentinel_ids(vocabulary)[0] == vocabulary.vocab_size - 1
  assert sentinel_ids(make_vocabulary('byt5'))[0] == make_vocabulary('byt5').vocab_size - 1
  assert sentinel_ids(seqio.ByteVocabulary()) == []
  assert sentinel_ids(seqio.PassThroughVocabulary(5)) == []
  check_sentinels(make_vocabulary('byt5'), 11)
  with pytest.raises(ConfigError, match='need 12 sentinels in a sequence; the vocabulary has 11'):
    check_sentinels(make_vocabulary('byt5'), 12)
  with pytest.raises(ConfigError, match=r"counts its sentinels upwards.*use 'byt5'"):
    check_sentinels(make_vocabulary('byt5_huggingface'), 1)


def test_the_three_are_told_apart():
  assert make_vocabulary('byt5') == seqio.ByteVocabulary()
  assert make_vocabulary('byt5_huggingface') != seqio.ByteVocabulary(125)
  assert seqio.ByteVocabulary(125) != make_vocabulary('byt5_huggingface')
