"""Vocabularies by name, and what a checkpoint needs to find the same one again."""

import io
import json
import shutil

import pytest
import sentencepiece

from switch_jax.config import ConfigError
from switch_jax.data import vocabularies
from switch_jax.data.vocabularies import check_vocabulary, describe_vocabulary, load_vocabulary, make_vocabulary

TEXT = 'the quick brown fox jumps over a lazy dog while many vexed wizards quietly judge his new boxing gloves'
WORDS = TEXT.split()


def train(path, **special_ids):
  """Writes a small SentencePiece model."""
  model = io.BytesIO()
  lines = (' '.join(WORDS[i % 7 : i % 11 + 7]) for i in range(200))
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=lines, model_writer=model, vocab_size=290, byte_fallback=True, minloglevel=2, **special_ids
  )
  path.write_bytes(model.getvalue())
  return str(path)


@pytest.fixture(scope='module')
def model_file(tmp_path_factory):
  """A model in T5's layout."""
  return train(tmp_path_factory.mktemp('vocabulary') / 'small.model', pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


def test_bytes():
  vocabulary = make_vocabulary('bytes')
  assert (vocabulary.vocab_size, vocabulary.eos_id, vocabulary.extra_ids) == (359, 1, 100)
  assert load_vocabulary(json.loads(json.dumps(describe_vocabulary(vocabulary)))) == vocabulary


@pytest.mark.parametrize(('name', 'size', 'extra_ids'), [('byt5', 259, 0), ('byt5_huggingface', 384, 125)])
def test_bytes_of_byt5(name, size, extra_ids):
  vocabulary = make_vocabulary(name)
  assert (vocabulary.vocab_size, vocabulary.eos_id, vocabulary.extra_ids) == (size, 1, extra_ids)
  record = json.loads(json.dumps(describe_vocabulary(vocabulary)))
  assert record['name'] == name
  loaded = load_vocabulary(record)
  assert (type(loaded), loaded) == (type(vocabulary), vocabulary)
  # A task with SeqIO's own class has the ids of ByT5, and not those of Hugging Face's tokenizer.
  own = vocabularies.seqio.ByteVocabulary(extra_ids)
  assert (record['digest'] == describe_vocabulary(own)['digest']) == (name == 'byt5')


def test_layout_of_sentencepiece_models(model_file):
  vocabulary = make_vocabulary(model_file)
  check_vocabulary(vocabulary)
  assert (vocabulary.vocab_size, vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (390, 0, 1, 2)
  assert vocabulary.encode('fox <extra_id_0> dog <extra_id_1>').count(389) == 1
  assert vocabulary.decode(vocabulary.encode('fox <extra_id_0> dog')) == 'fox <extra_id_0> dog'


def test_unseen_characters_are_bytes(model_file):
  vocabulary = make_vocabulary(model_file)
  tokens = vocabulary.encode('fox 狐 dog')
  assert vocabulary.unk_id not in tokens
  assert vocabulary.decode(tokens) == 'fox 狐 dog'


def test_a_checkpoint_finds_its_vocabulary_without_the_file(model_file, tmp_path):
  moved = shutil.copy(model_file, tmp_path / 'moved.model')
  vocabulary = make_vocabulary(str(moved))
  record = json.loads(json.dumps(describe_vocabulary(vocabulary)))
  vocabularies.keep_vocabulary(vocabulary, tmp_path)
  (tmp_path / 'moved.model').unlink()
  assert vocabularies.recorded_name(record, tmp_path) == str(tmp_path / 'vocabulary.model')
  assert vocabularies.recorded_name(record) == str(moved)
  assert vocabularies.recorded_name({'name': 'byt5'}, tmp_path) == 'byt5'
  assert vocabularies.recorded_name({'name': None}, tmp_path) is None
  loaded = load_vocabulary(record, tmp_path)
  assert loaded.encode('the lazy fox') == make_vocabulary(model_file).encode('the lazy fox')
  with pytest.raises(ConfigError, match='cannot be read'):
    load_vocabulary(record | {'name': str(tmp_path / 'elsewhere.model')})


def test_another_vocabulary_is_refused(model_file, tmp_path):
  record = describe_vocabulary(make_vocabulary(model_file))
  other = describe_vocabulary(make_vocabulary('bytes'))
  with pytest.raises(ConfigError, match='not the one'):
    load_vocabulary(record | {'digest': other['digest']})
  with pytest.raises(ConfigError, match='does not name its vocabulary'):
    load_vocabulary(record | {'name': None})


def test_files_that_are_no_vocabulary(tmp_path):
  (tmp_path / 'text.model').write_text('just some text')
  with pytest.raises(ConfigError, match='not a SentencePiece model'):
    check_vocabulary(make_vocabulary(str(tmp_path / 'text.model')))
  with pytest.raises(ConfigError, match=r'cannot be read.*train_vocabulary'):
    check_vocabulary(make_vocabulary(str(tmp_path / 'absent.model')))
  with pytest.raises(ConfigError, match=r'ids \(-1, 2, 0\).*must be \(0, 1, 2\)'):
    check_vocabulary(make_vocabulary(train(tmp_path / 'other.model')))
