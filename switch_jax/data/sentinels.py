"""Sentinels of byte vocabularies as text: `<extra_id_0>` to its id and back, as SentencePiece does for its own.

SeqIO's byte vocabulary knows bytes only: it takes `<extra_id_0>` for twelve of them, and leaves sentinels out of what
it decodes. Which ids they are depends on who trained the model:

* SeqIO's `ByteVocabulary(extra_ids=n)` with span corruption (T5X, and ours): they count down from the highest id, so of
  100 `<extra_id_0>` is 358 and `<extra_id_99>` 259.
* ByT5 as released (`byt5`): `byt5/tasks.py` of google-research/byt5 has `ByteVocabulary()`, without extra ids, so that
  span corruption counts down from 258, the id of byte 0xFF; Hugging Face's page of ByT5 shows the released weights
  doing so. The bytes 0xF5 to 0xFF occur in no UTF-8, hence those eleven are sentinels and nothing else.
* Hugging Face's `ByT5Tokenizer` (`byt5_huggingface`; transformers 5.23, `tokenization_byt5.py`): it adds 125 tokens of
  its own, upwards: `<extra_id_0>` is 259 and `<extra_id_124>` 383. The released weights have never seen them; models
  that were trained with that tokenizer have.
"""

import re
from collections.abc import Iterable

from switch_jax.data.quiet_tensorflow import seqio

_SENTINEL = re.compile(r'<extra_id_(0|[1-9]\d*)>')
_NO_UTF8 = 0x100 - 0xF5  # bytes from 0xF5 on
BYT5_EXTRA_IDS = 125


class ByT5Vocabulary(seqio.ByteVocabulary):
  """The ids of ByT5 as released: SeqIO's bytes without extra ids, whose highest ones are sentinels."""

  def __init__(self) -> None:
    super().__init__(extra_ids=0)


class HuggingFaceByteVocabulary(seqio.ByteVocabulary):
  """The ids of Hugging Face's ByT5Tokenizer: those of SeqIO's bytes, but for the order of the extra ids."""

  def __eq__(self, other: object) -> bool:
    """Whether the other one has the same ids with the same meanings."""
    return isinstance(other, HuggingFaceByteVocabulary) and self.extra_ids == other.extra_ids


def sentinel_ids(vocabulary: seqio.Vocabulary) -> list[int]:
  """Returns the ids of `<extra_id_0>`, `<extra_id_1>`, ... of a byte vocabulary; none of others, which know theirs."""
  if not isinstance(vocabulary, seqio.ByteVocabulary):
    return []
  last = vocabulary.vocab_size - 1
  count = _NO_UTF8 if isinstance(vocabulary, ByT5Vocabulary) else vocabulary.extra_ids
  if isinstance(vocabulary, HuggingFaceByteVocabulary):
    return list(range(last - count + 1, last + 1))
  return list(range(last, last - count, -1))


def encode_text(vocabulary: seqio.Vocabulary, text: str) -> list[int]:
  """Returns the ids of a text, without EOS; `<extra_id_N>` in it is one id where the vocabulary has that sentinel."""
  ids = sentinel_ids(vocabulary)
  tokens: list[int] = []
  start = 0
  for match in _SENTINEL.finditer(text) if ids else ():
    if len(match[1]) < 10 and int(match[1]) < len(ids):
      tokens += [*vocabulary.encode(text[start : match.start()]), ids[int(match[1])]]
      start = match.end()
  return [*tokens, *vocabulary.encode(text[start:])]


def decode_tokens(vocabulary: seqio.Vocabulary, tokens: Iterable[int]) -> str:
  """Returns the text of ids up to the first EOS; a sentinel among them is written as `<extra_id_N>`."""
  tokens = [int(token) for token in tokens]
  names = {token: f'<extra_id_{number}>' for number, token in enumerate(sentinel_ids(vocabulary))}
  if not names:
    return vocabulary.decode(tokens)
  if vocabulary.eos_id in tokens:
    tokens = tokens[: tokens.index(vocabulary.eos_id)]
  parts, start = [], 0
  for place, token in enumerate(tokens):
    if token in names:
      parts += [vocabulary.decode(tokens[start:place]), names[token]]
      start = place + 1
  return ''.join([*parts, vocabulary.decode(tokens[start:])])
