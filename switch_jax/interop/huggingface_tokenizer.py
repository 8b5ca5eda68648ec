"""Our vocabularies as tokenizers of Hugging Face (`tokenizer.json`), and theirs as vocabularies.

`AutoTokenizer` reads a `tokenizer.json` as it stands, so every step of ours is written into it: which id a sentinel
has, that a text's own `</s>` is characters and no EOS (`split_special_tokens`), that a SentencePiece sentinel takes the
space before it along, that sentinels stay in decoded text, and whether EOS is appended at all. The classes T5Tokenizer
and ByT5Tokenizer would set some of these their own way, whatever the files say.
"""

import base64
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from switch_jax import data
from switch_jax.config import ConfigError
from switch_jax.folders import checked_json
from switch_jax.folders.regular_files import regular_file

PIECES = 'spiece.model'
CONFIG, TOKENIZER = 'tokenizer_config.json', 'tokenizer.json'
_SPECIAL = ('<pad>', '</s>', '<unk>')  # ids 0, 1, 2 of every vocabulary here
_SENTINEL = re.compile(r'▁?(<extra_id_\d+>)')
_BYTES = 256
# Of this key in tokenizer_config.json, beside `extra_ids`, which transformers keeps and does not use.
_KEY = 'switch_jax_vocabulary'
_USER_DEFINED, _UNIGRAM = 4, 1  # SentencePiece's numbers


@dataclasses.dataclass(frozen=True)
class Export:
  """A vocabulary's files for Hugging Face.

  Attributes:
    files: content by name; empty where no tokenizer there gives the same ids.
    words: what they are, or why there are none, for people.
    size: ids that have a meaning; None where the vocabulary is unknown.
  """

  files: dict[str, bytes]
  words: str
  size: int | None = None


def export(
  record: Mapping[str, Any], model_dir: str | None, inputs_length: int | None, add_eos: bool, begins: bool = False
) -> Export:
  """Returns the tokenizer of a checkpoint.

  Args:
    record: what its `config.json` records of the vocabulary.
    model_dir: its MODEL_DIR, which may have a copy of the SentencePiece model.
    inputs_length: to which `truncation=True` cuts, in tokens.
    add_eos: whether EOS is appended to a text.
    begins: whether the start symbol (padding) stands before it, and texts of a batch end together: of a model without
      an encoder.
  """
  try:
    vocabulary = data.load_vocabulary(record, model_dir)
  except KeyError as error:
    return Export({}, f'none: config.json of the checkpoint does not say {error} of its vocabulary')
  except ConfigError as error:
    return Export({}, f'none: {error}')
  facts = data.describe_vocabulary(vocabulary)
  size, extra_ids = facts['size'], facts['extra_ids']
  if hasattr(vocabulary, 'sp_model'):
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(vocabulary.sp_model)
    if reason := _no_equal(proto):
      return Export({}, f'none: {reason}, for which no tokenizer of Hugging Face is known to give the same ids', size)
    backend, kind = _unigram(proto), PIECES
    files = {PIECES: epath.Path(vocabulary.sentencepiece_model_file).read_bytes()}
  else:
    backend, kind, files = _bytes(data.sentinel_ids(vocabulary)), facts['name'], {}
  symbol = lambda name: [{'SpecialToken': {'id': name, 'type_id': 0}}]  # noqa: E731
  text = [*(symbol('<pad>') if begins else []), {'Sequence': {'id': 'A', 'type_id': 0}}]
  eos = symbol('</s>') if add_eos else []
  pair = [{'Sequence': {'id': 'B', 'type_id': 0}}]
  backend |= {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'post_processor': {
      'type': 'TemplateProcessing',
      'single': text + eos,
      'pair': [*text, *eos, *pair, *eos],
      'special_tokens': {
        name: {'id': name, 'ids': [i], 'tokens': [name]} for i, name in enumerate(_SPECIAL[:2]) if i or begins
      },
    },
  }
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'pad_token': '<pad>',
    'eos_token': '</s>',
    'split_special_tokens': True,
    'clean_up_tokenization_spaces': False,
    'model_input_names': ['input_ids', 'attention_mask'],
    'extra_ids': extra_ids,
    _KEY: kind,
  } | ({} if inputs_length is None else {'model_max_length': inputs_length})
  if begins:
    config['padding_side'] = 'left'
  if kind != PIECES:  # SentencePiece writes the unknown token into a text, and `skip_special_tokens` would leave it out
    config['unk_token'] = '<unk>'
  as_file = lambda content: (json.dumps(content, ensure_ascii=False, indent=1) + '\n').encode()  # noqa: E731
  files |= {TOKENIZER: as_file(backend), CONFIG: as_file(config)}
  return Export(files, f'{", ".join(sorted(files))}: {size} ids, {extra_ids} of them extra', size)


def read_vocabulary(folder: str) -> tuple[dict[str, Any] | None, dict[str, bytes], str]:
  """Returns the vocabulary of a Hugging Face checkpoint.

  Args:
    folder: local.

  Returns:
    What `config.json` of a checkpoint of ours is to record of it, or None where nothing here has its ids; files for
    the MODEL_DIR; and what it is, for people, empty if nothing is known.
  """
  content = {}
  for name in ('config.json', CONFIG):
    if regular_file(folder, name).exists():
      content |= {key: value for key, value in checked_json.read(folder, name).items() if value is not None}
  kind, extra_ids = content.get(_KEY), content.get('extra_ids')
  if not (isinstance(extra_ids, int) and 0 <= extra_ids < 2**20):
    extra_ids = None
  if content.get('tokenizer_class') == 'ByT5Tokenizer':
    words = (
      "byt5, whose <extra_id_0> is 258; if the model was trained on the extra ids of Hugging Face's tokenizer (259 and "
      'up), use it with VOCABULARY=byt5_huggingface'
    )
    return data.describe_vocabulary(data.make_vocabulary('byt5')), {}, words
  if kind in ('bytes', 'byt5', 'byt5_huggingface'):
    return data.describe_vocabulary(data.make_vocabulary(kind, extra_ids)), {}, kind
  pieces = regular_file(folder, PIECES)
  if not pieces.exists():
    return None, {}, ''
  vocabulary = data.make_vocabulary(os.fspath(pathlib.Path(pieces).absolute()), extra_ids)
  try:
    data.check_vocabulary(vocabulary)
  except ConfigError as error:
    return None, {}, f'not taken: {error}'
  facts = data.describe_vocabulary(vocabulary)
  words = f'{PIECES}, {facts["size"]} ids, {facts["extra_ids"]} of them extra'
  return facts, {'vocabulary.model': pieces.read_bytes()}, words


def _bytes(sentinels: list[int]) -> dict[str, Any]:
  """Returns `tokenizer.json` of a byte vocabulary whose sentinels have these ids."""
  vocabulary = {token: i for i, token in enumerate(_SPECIAL)}
  # Ids of bytes that no UTF-8 has may be sentinels.
  vocabulary |= {character: 3 + i for i, character in enumerate(_byte_characters()) if 3 + i not in sentinels}
  vocabulary |= {f'<extra_id_{i}>': token for i, token in enumerate(sentinels)}
  added = [_added_token(i, token, special=True) for i, token in enumerate(_SPECIAL)]
  added += [_added_token(token, f'<extra_id_{i}>') for i, token in enumerate(sentinels)]
  level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
  return {
    'added_tokens': sorted(added, key=lambda token: token['id']),
    'normalizer': None,
    'pre_tokenizer': level,
    # Bytes that are no UTF-8 are left out of a text, as SeqIO does.
    'decoder': {'type': 'Sequence', 'decoders': [level, _replace({'String': '\ufffd'}, '')]},
    'model': {'type': 'BPE', 'vocab': vocabulary, 'merges': [], 'fuse_unk': False, 'byte_fallback': False}
    | dict.fromkeys(('dropout', 'unk_token', 'continuing_subword_prefix', 'end_of_word_suffix')),
  }


def _byte_characters() -> list[str]:
  """Returns the character that stands for each byte in Hugging Face's files: itself where it can be printed."""
  printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = [byte for byte in range(_BYTES) if byte not in printed]
  return [chr(byte) if byte in printed else chr(_BYTES + others.index(byte)) for byte in range(_BYTES)]


def _no_equal(proto: Any) -> str:
  """Returns why a SentencePiece model cannot be written as a `tokenizer.json`; empty if it can."""
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  if trainer.model_type != _UNIGRAM:
    return 'the SentencePiece model is no unigram model'
  if trainer.treat_whitespace_as_suffix or not (normalizer.add_dummy_prefix and normalizer.remove_extra_whitespaces):
    return 'the SentencePiece model treats white space in a way of its own'
  own = [p.piece for p in proto.pieces if p.type == _USER_DEFINED and not _SENTINEL.fullmatch(p.piece)]
  return f'the SentencePiece model has symbols of its own ({own[0]!r})' if own else ''


def _unigram(proto: Any) -> dict[str, Any]:
  """Returns `tokenizer.json` of a unigram SentencePiece model, the extra ids among its pieces."""
  pieces, added = [], [_added_token(i, token, special=True) for i, token in enumerate(_SPECIAL[:2])]
  for i, piece in enumerate(proto.pieces):
    sentinel = _SENTINEL.fullmatch(piece.piece)
    text = _SPECIAL[i] if i < len(_SPECIAL) else sentinel[1] if sentinel else piece.piece
    pieces.append([text, piece.score])
    if sentinel:  # SentencePiece has it with the space before it
      added.append(_added_token(i, text, lstrip=True))
  charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
  normalizers = [{'type': 'Precompiled', 'precompiled_charsmap': charsmap}] if charsmap else []
  normalizers += [_replace({'Regex': r' +\z'}, ''), _replace({'Regex': ' {2,}'}, ' ')]
  # A text's own `</s>` would be a piece otherwise: no piece goes over its first character.
  apart = {
    'type': 'Split',
    'pattern': {'Regex': '<(?=pad>|/s>|unk>)'},
    'behavior': 'MergedWithPrevious',
    'invert': False,
  }
  # After a sentinel a word begins with a space only if the text has one there.
  words = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'first'}
  words |= {'split': bool(proto.trainer_spec.split_by_whitespace)}
  return {
    'added_tokens': added,
    'normalizer': {'type': 'Sequence', 'normalizers': normalizers},
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [apart, words]},
    'decoder': {
      'type': 'Sequence',
      'decoders': [
        _replace({'String': '<extra_id_'}, ' <extra_id_'),
        _replace({'String': '<unk>'}, ' ⁇ '),
        _replace({'String': '▁'}, ' '),
        {'type': 'ByteFallback'},
        {'type': 'Fuse'},
        {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0},
      ],
    },
    'model': {'type': 'Unigram', 'unk_id': 2, 'vocab': pieces, 'byte_fallback': bool(proto.trainer_spec.byte_fallback)},
  }


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
  return {'type': 'Replace', 'pattern': pattern, 'content': content}


def _added_token(token: int, content: str, *, special: bool = False, lstrip: bool = False) -> dict[str, Any]:
  """Returns an entry of `added_tokens`; `skip_special_tokens` leaves out of a text what is special."""
  flags = {'single_word': False, 'lstrip': lstrip, 'rstrip': False, 'normalized': False, 'special': special}
  return {'id': token, 'content': content, **flags}
