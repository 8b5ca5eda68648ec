"""Vocabularies by name: bytes, or a SentencePiece model in T5's layout; and what a checkpoint records of one.

T5's layout is padding 0, EOS 1, unknown 2, then the pieces, then 100 extra ids that stand for masked spans, the first
of which has the highest id. A SentencePiece file holds everything but the extra ids, which are added here.

A run writes its SentencePiece model into its MODEL_DIR, so that a checkpoint can be read where the file it was trained
with is not, and every checkpoint's `config.json` says which vocabulary it needs and the digest it must have.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from switch_jax.config import ConfigError, first_line
from switch_jax.data.quiet_tensorflow import seqio, tf
from switch_jax.data.sentinels import BYT5_EXTRA_IDS, ByT5Vocabulary, HuggingFaceByteVocabulary
from switch_jax.folders.model_dir import ModelDir
from switch_jax.folders.remote import is_storage_error

# Bytes with the sentinels of SeqIO, of ByT5 as released, and of Hugging Face's ByT5Tokenizer; see `sentinels.py`.
BYTES, BYT5, BYT5_HUGGINGFACE = 'bytes', 'byt5', 'byt5_huggingface'
_OF_BYTES = (BYTES, BYT5, BYT5_HUGGINGFACE)
# T5's own: 32,000 English, French, German and Romanian pieces. The model's name says "100extra"; they are not in it.
T5_VOCABULARY = 'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model'
# mT5's own: 250,000 pieces of 101 languages. Its 100 extra ids are pieces of the model, the last ones.
MT5_VOCABULARY = 'gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model'
EXTRA_IDS = 100


def make_vocabulary(name: str, extra_ids: int | None = None) -> seqio.Vocabulary:
  """Returns the vocabulary of a name. A file is not read before it is needed; see `check_vocabulary`.

  Args:
    name: 'bytes' (256 bytes and 3 special ids), 'byt5' or 'byt5_huggingface' (the same with the sentinels of ByT5's
      release and of Hugging Face's tokenizer), or the path of a SentencePiece model, which may be `gs://`.
    extra_ids: ids on top, which stand for masked spans. None is 100, or 0 for a model that has them among its pieces,
      as mT5's and copies of it, and 0 and 125 for the two of ByT5.
  """
  if name == BYT5:
    return ByT5Vocabulary()
  if name == BYT5_HUGGINGFACE:
    return HuggingFaceByteVocabulary(BYT5_EXTRA_IDS if extra_ids is None else extra_ids)
  if extra_ids is None:
    extra_ids = 0 if _has_sentinels(name) else EXTRA_IDS
  if name == BYTES:
    return seqio.ByteVocabulary(extra_ids=extra_ids)
  return seqio.SentencePieceVocabulary(os.path.expanduser(name), extra_ids)


@functools.cache
def _has_sentinels(name: str) -> bool:
  """Whether a SentencePiece model has the ids for masked spans among its pieces; one that cannot be read has not."""
  if name in (BYTES, T5_VOCABULARY, MT5_VOCABULARY):  # known without a network
    return name == MT5_VOCABULARY
  try:
    return b'<extra_id_0>' in epath.Path(os.path.expanduser(name)).read_bytes()
  except Exception as error:
    if not is_storage_error(error):
      raise
    return False  # `check_vocabulary` says why


def check_vocabulary(vocabulary: seqio.Vocabulary) -> None:
  """Reads the file of a vocabulary, if it has one, and checks that it has T5's layout.

  Raises:
    ConfigError: the file is not there, cannot be read, is no SentencePiece model, or has other special ids.
  """
  if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
    return
  path = vocabulary.sentencepiece_model_file
  try:
    tokenizer = vocabulary.tokenizer
  except tf.errors.OpError as error:
    raise ConfigError(
      f'The SentencePiece model {path} cannot be read ({first_line(error)}). Give another one, '
      f"--gin.VOCABULARY=/some/dir/sentencepiece.model (or one of {', '.join(_OF_BYTES)}): copy T5's from "
      f'{T5_VOCABULARY} where there is a network, or train one with python -m switch_jax.tasks.train_vocabulary.'
    ) from error
  except Exception as error:  # whatever protobuf and SentencePiece say of bytes that are not theirs
    raise ConfigError(f'{path} is not a SentencePiece model ({first_line(error)}); name its .model file.') from error
  ids = (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id())
  if ids != (0, 1, 2):
    raise ConfigError(
      f'The SentencePiece model {path} has the ids {ids} for padding, EOS and unknown; they must be (0, 1, 2). '
      'Train it with pad_id=0, eos_id=1, unk_id=2, bos_id=-1, as python -m switch_jax.tasks.train_vocabulary does.'
    )


def vocabulary_digest(vocabulary: seqio.Vocabulary) -> str:
  """Returns what identifies a vocabulary: its class, its special ids, and the SentencePiece model if it has one."""
  # ByT5's ids are those of a task with SeqIO's own class.
  kind = seqio.ByteVocabulary if isinstance(vocabulary, ByT5Vocabulary) else type(vocabulary)
  facts = [kind.__name__, vocabulary.vocab_size, vocabulary.extra_ids, vocabulary.eos_id, vocabulary.unk_id]
  model = getattr(vocabulary, 'sp_model', None)
  model = hashlib.sha256(model).hexdigest() if isinstance(model, bytes) else None
  return hashlib.sha256(json.dumps([*facts, model]).encode()).hexdigest()


def describe_vocabulary(vocabulary: seqio.Vocabulary) -> dict[str, Any]:
  """Returns what a checkpoint's `config.json` records of a vocabulary, plain values that `load_vocabulary` reads.

  `name` is 'bytes', 'byt5' or 'byt5_huggingface', the path of a SentencePiece model, or None for a vocabulary of the
  user's own class.
  """
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    name = vocabulary.sentencepiece_model_file
  else:
    kinds = ((ByT5Vocabulary, BYT5), (HuggingFaceByteVocabulary, BYT5_HUGGINGFACE), (seqio.ByteVocabulary, BYTES))
    name = next((known for kind, known in kinds if isinstance(vocabulary, kind)), None)
  return {
    'name': name,
    'extra_ids': vocabulary.extra_ids,
    'size': vocabulary.vocab_size,
    'digest': vocabulary_digest(vocabulary),
  }


def keep_vocabulary(vocabulary: seqio.Vocabulary, model_dir: str | os.PathLike[str]) -> None:
  """Copies the SentencePiece model of a vocabulary, if it has one, into a MODEL_DIR."""
  if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
    return
  target, model = ModelDir(model_dir).vocabulary, epath.Path(vocabulary.sentencepiece_model_file).read_bytes()
  if not (target.exists() and target.read_bytes() == model):
    target.write_bytes(model)


def recorded_name(record: Mapping[str, Any], model_dir: str | os.PathLike[str] | None = None) -> str | None:
  """Returns the name by which `make_vocabulary` gives a recorded vocabulary; None for one of the user's own class.

  Args:
    record: the `vocabulary` of a checkpoint's `config.json`.
    model_dir: the MODEL_DIR of the checkpoint; its own copy of a SentencePiece model comes before the recorded path.
  """
  name = record.get('name')
  if name and name not in _OF_BYTES and model_dir is not None and (copied := ModelDir(model_dir).vocabulary).exists():
    return os.fspath(copied)
  return name


def load_vocabulary(record: Mapping[str, Any], model_dir: str | os.PathLike[str] | None = None) -> seqio.Vocabulary:
  """Returns the vocabulary that a checkpoint was made with.

  Args:
    record: the `vocabulary` of its `config.json`.
    model_dir: the MODEL_DIR of the checkpoint; its own copy of a SentencePiece model comes before the recorded path.

  Raises:
    ConfigError: the vocabulary is of the user's own class, or cannot be found, or is another one than recorded.
  """
  name = recorded_name(record, model_dir)
  if name is None:
    raise ConfigError(
      "The checkpoint's config.json does not name its vocabulary (a task's own class, or an older version); only "
      'bytes and SentencePiece models can be loaded without the task.'
    )
  vocabulary = make_vocabulary(name, record['extra_ids'])
  check_vocabulary(vocabulary)
  if (digest := vocabulary_digest(vocabulary)) != record['digest']:
    raise ConfigError(
      f'The vocabulary {name} is not the one that the checkpoint was made with (its digest is {digest[:16]} and should '
      f'be {record["digest"][:16]}); put the original in its place.'
    )
  return vocabulary
