"""Our vocabularies as `tokenizer.json`: the same ids, written out; and read back as the same vocabulary.

What transformers makes of the files is compared where it is installed. Elsewhere a few lines here do with them what
its library does with each kind.
"""

import json
import pathlib
import re

import pytest

from switch_jax import data
from switch_jax.interop import huggingface_tokenizer
from switch_jax.tasks import train_vocabulary

TEXTS = ['', ' ', 'Hello  world ', 'a <extra_id_0> b <extra_id_10>', ' <extra_id_3>abc', '<extra_id_1> <extra_id_2>',
         'naïve ﬁ ½\t\n e\u0301', '日本 😀', 'x</s>y <pad> <unk>', 'the words of the page']  # fmt: skip
BYTES = {'bytes': 100, 'byt5': None, 'byt5_huggingface': None}


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
  """A SentencePiece model of ours."""
  path = tmp_path_factory.mktemp('vocabulary') / 'sentencepiece.model'
  path.write_bytes(train_vocabulary.train([pathlib.Path(train_vocabulary.__file__).read_text()], 400))
  return path


def vocabulary_of(kind, pieces):
  return data.make_vocabulary(str(pieces) if kind == 'pieces' else kind, BYTES.get(kind))


def write(folder, vocabulary, add_eos=True):
  """Writes a folder as far as a tokenizer is concerned; returns tokenizer.json and tokenizer_config.json."""
  export = huggingface_tokenizer.export(data.describe_vocabulary(vocabulary), None, 64, add_eos)
  assert export.size == vocabulary.vocab_size
  for name, content in export.files.items():
    (folder / name).write_bytes(content)
  (folder / 'config.json').write_text('{"model_type": "switch_transformers"}')
  return [json.loads(export.files[name]) for name in ('tokenizer.json', 'tokenizer_config.json')]


@pytest.mark.parametrize('kind', BYTES)
def test_bytes(tmp_path, kind):
  vocabulary = vocabulary_of(kind, None)
  content, config = write(tmp_path, vocabulary)
  ids = content['model']['vocab']
  assert sorted(ids.values()) == list(range(vocabulary.vocab_size))
  added = {token['content']: token for token in content['added_tokens']}
  assert all(ids[text] == token['id'] for text, token in added.items())
  assert [text for text, token in added.items() if token['special']] == ['<pad>', '</s>', '<unk>']
  assert config['split_special_tokens']
  # As the library: added tokens that are not special first, then a character for each byte.
  sentinels = [text for text, token in added.items() if not token['special']]
  characters = dict(zip(range(256), huggingface_tokenizer._byte_characters(), strict=True))
  for text in TEXTS:
    parts = re.split('(' + '|'.join(sentinels) + ')', text)
    tokens = [t for part in parts for t in ([part] if part in sentinels else [characters[b] for b in part.encode()])]
    assert [ids[token] for token in tokens] == data.encode_text(vocabulary, text)
  assert [characters[byte] for byte in b'aZ \n\xe4'] == ['a', 'Z', 'Ġ', 'Ċ', 'ä']


def test_pieces(tmp_path, pieces):
  vocabulary = vocabulary_of('pieces', pieces)
  content, config = write(tmp_path, vocabulary)
  assert (tmp_path / 'spiece.model').read_bytes() == pieces.read_bytes()
  assert (config['extra_ids'], config['model_max_length']) == (100, 64)
  model = content['model']
  assert len(model['vocab']) == vocabulary.vocab_size == 500
  assert (model['unk_id'], model['byte_fallback']) == (2, True)
  for i, (text, score) in enumerate(model['vocab']):
    assert vocabulary.tokenizer.IdToPiece(i).removeprefix('▁<').removeprefix('<') == text.removeprefix('<')
    assert vocabulary.tokenizer.GetScore(i) == score
  sentinels = {token['content']: token for token in content['added_tokens'] if not token['special']}
  assert {text: token['id'] for text, token in sentinels.items()} == {f'<extra_id_{i}>': 499 - i for i in range(100)}
  assert all(token['lstrip'] for token in sentinels.values())
  assert content['normalizer']['normalizers'][0]['type'] == 'Precompiled'


def test_eos_is_appended_where_the_task_does(tmp_path):
  for add_eos in (True, False):
    single = write(tmp_path, vocabulary_of('bytes', None), add_eos)[0]['post_processor']['single']
    assert [next(iter(part)) for part in single] == ['Sequence', 'SpecialToken'][: 1 + add_eos]


@pytest.mark.parametrize('kind', [*BYTES, 'pieces'])
def test_read_back(tmp_path, kind, pieces):
  vocabulary = vocabulary_of(kind, pieces)
  write(tmp_path, vocabulary)
  record, files, words = huggingface_tokenizer.read_vocabulary(str(tmp_path))
  assert record['digest'] == data.describe_vocabulary(vocabulary)['digest']
  assert words.startswith('spiece.model, 500 ids' if kind == 'pieces' else kind)
  assert list(files) == (['vocabulary.model'] if kind == 'pieces' else [])
  assert record['digest'] == data.describe_vocabulary(data.load_vocabulary(record))['digest']


def test_folders_of_others(tmp_path, pieces):
  read = huggingface_tokenizer.read_vocabulary
  assert read(str(tmp_path)) == (None, {}, '')
  (tmp_path / 'spiece.model').write_bytes(pieces.read_bytes())
  (tmp_path / 'tokenizer_config.json').write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": "many"}')
  assert read(str(tmp_path))[0]['extra_ids'] == 100
  (tmp_path / 'damaged').mkdir()
  (tmp_path / 'damaged' / 'spiece.model').write_bytes(b'none')
  record, files, words = read(str(tmp_path / 'damaged'))
  assert (record, files) == (None, {})
  assert re.match('not taken: .* is not a SentencePiece model', words)


def test_what_has_no_equal_is_not_written(pieces, tmp_path):
  assert huggingface_tokenizer.export({'name': None}, None, None, True).words.startswith('none: The checkpoint')
  assert 'does not say' in huggingface_tokenizer.export({'name': 'bytes'}, None, None, True).words
  proto = sentencepiece_model(pieces)
  proto.trainer_spec.model_type = 2
  assert 'no unigram model' in huggingface_tokenizer._no_equal(proto)
  proto = sentencepiece_model(pieces)
  proto.normalizer_spec.add_dummy_prefix = False
  assert 'white space' in huggingface_tokenizer._no_equal(proto)
  proto = sentencepiece_model(pieces)
  proto.pieces[300].type = 4
  path = tmp_path / 'own.model'
  path.write_bytes(proto.SerializeToString())
  export = huggingface_tokenizer.export(data.describe_vocabulary(data.make_vocabulary(str(path))), None, None, True)
  assert export.files == {}
  assert 'symbols of its own' in export.words


def sentencepiece_model(path):
  from sentencepiece import sentencepiece_model_pb2

  return sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())


@pytest.mark.parametrize('kind', [*BYTES, 'pieces'])
def test_transformers_has_our_ids_and_texts(tmp_path, kind, pieces):
  transformers = pytest.importorskip('transformers', reason='transformers is not installed')
  vocabulary = vocabulary_of(kind, pieces)
  write(tmp_path, vocabulary)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for text in TEXTS:
    ids = data.encode_text(vocabulary, text)
    assert tokenizer(text)['input_ids'] == [*ids, 1]
    assert tokenizer.decode([0, *ids, 1], skip_special_tokens=True) == data.decode_tokens(vocabulary, ids)
