"""A few of the hostile checkpoints of `benchmarks/fuzz_checkpoints.py`, and each known kind of harm by name."""

import json
import os
import shutil
import struct

import msgpack
import pytest

from switch_jax import interop
from switch_jax.config import ConfigError
from tests.interop import fuzz


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  return fuzz.write_sources(tmp_path_factory.mktemp('sources'))


@pytest.mark.parametrize('kind', fuzz.KINDS)
def test_a_checkpoint_or_one_line(sources, tmp_path, kind):
  for seed in range(12):
    (tmp_path / str(seed)).mkdir()
    done = fuzz.mutated(sources[kind][seed % len(sources[kind])], tmp_path / str(seed), seed)
    result, message = fuzz.outcome(fuzz.FORMATS[kind], tmp_path / str(seed) / 'checkpoint')
    assert result in ('loaded', 'refused'), f'{seed}: {done}: {message}'


def refused(format, path, match):
  with pytest.raises(ConfigError, match=match) as caught:
    interop.load(format, path)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('fields', 'match'),
  [
    ({'expert_capacity': 0}, 'config.json: expert_capacity is 0; it must be an integer from 1'),
    ({'dense_act_fn': 5}, 'dense_act_fn is 5; it must be a string'),
    ({'num_layers': -1}, 'num_layers is -1; it must be an integer from 1'),
    ({'layer_norm_epsilon': float('nan')}, 'layer_norm_epsilon is nan; it must be a number'),
    ({'tie_word_embeddings': 'no'}, "tie_word_embeddings is 'no'; it must be true or false"),
    ({'model_type': ['t5']}, r"is a model of type \['t5'\]; known are"),
  ],
)
def test_fields_of_hugging_face(tmp_path, sparse_model, random_params, write_huggingface, fields, match):
  refused('huggingface', write_huggingface(tmp_path / 'm', random_params(sparse_model), sparse_model, **fields), match)


def test_files_of_hugging_face(tmp_path, sparse_model, random_params, write_huggingface):
  folder = write_huggingface(tmp_path / 'm', random_params(sparse_model), sparse_model, shards=1)
  os.link(folder / 'model-0.safetensors', tmp_path / 'x')
  index = folder / 'model.safetensors.index.json'
  weight_map = json.loads(index.read_text())['weight_map']
  for name, match in (
    ('../x', 'names must be relative and stay in the folder'),
    (str(tmp_path / 'x'), 'names must be relative'),
    (5, 'it must be a string'),
  ):
    index.write_text(json.dumps({'weight_map': dict.fromkeys(weight_map, name)}))
    refused('huggingface', folder, match)
  index.unlink()
  weights = folder / 'model.safetensors'
  os.mkfifo(weights)
  refused('huggingface', folder, 'model.safetensors is a pipe; it must be a regular file')
  weights.unlink()
  weights.write_bytes(struct.pack('<Q', 2**60) + bytes(100))
  refused('huggingface', folder, 'is not a whole safetensors file')
  (folder / 'config.json').unlink()
  (folder / 'config.json').mkdir()
  refused('huggingface', folder, 'config.json is a folder')


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    (lambda o: o['state'].update(step='x'), "the step is 'x'; it must be an integer"),
    (lambda o: _embedding(o).update(metadata=None), 'metadata is None; it must be an object'),
    (lambda o: _embedding(o)['metadata'].update(shape=[-1, 10]), 'it must be a list of sizes'),
    (lambda o: _embedding(o)['metadata'].update(shape=[2**45, 10]), 'it must be a list of sizes'),
    (lambda o: _embedding(o)['metadata'].update(shape=[2**30, 10]), 'it has the shape .*, the index says'),
    (lambda o: _embedding(o)['kvstore'].update(path=5), 'lies at 5; the paths'),
    (lambda o: o['target'].update({'a/b': 1}), "has the key 'a/b'; keys are names"),
    (
      lambda o: o['target']['encoder'].update(layers_999999999=o['target']['encoder']['layers_1']),
      'of layer 999999999',
    ),
  ],
)
def test_index_of_t5x(tmp_path, sparse_model, random_params, write_t5x, change, match):
  folder = write_t5x(tmp_path / 'c', random_params(sparse_model), state={})
  index = msgpack.unpackb((folder / 'checkpoint').read_bytes(), strict_map_key=False)
  change(index['optimizer'])
  (folder / 'checkpoint').write_bytes(msgpack.packb(index))
  refused('t5x', folder, match)


def _embedding(optimizer):
  return optimizer['target']['token_embedder']['embedding']


def test_arrays_of_t5x(tmp_path, sparse_model, random_params, write_t5x):
  folder = write_t5x(tmp_path / 'c', random_params(sparse_model))
  array = folder / 'target.token_embedder.embedding'
  whole = (array / '.zarray').read_text()
  for chunks, match in (([2**40, 10], 'no larger than the array'), (5, 'chunks is 5')):
    (array / '.zarray').write_text(json.dumps(json.loads(whole) | {'chunks': chunks}))
    refused('t5x', folder, match)
  (array / '.zarray').write_text(whole)
  (array / '0.0').rename(tmp_path / 'elsewhere')
  (array / '0.0').symlink_to(tmp_path / 'elsewhere')
  refused('t5x', folder, 'outside the folder; only files inside are read')
  (array / '0.0').unlink()
  os.mkfifo(array / '0.0')
  refused('t5x', folder, '0.0 is a pipe; it must be a regular file')


@pytest.mark.parametrize(
  ('model', 'match'),
  [
    ({'num_encoder_layers': 10**9}, 'a model has at most 10000'),
    ({'num_encoder_layers': 5000}, 'more layers than there are arrays'),
    ({'moe': 5}, 'moe is 5'),
    ({'dropout_rate': 10**400}, 'records a model that cannot be built'),
    ({'emb_dim': 2**62}, 'do not fit|cannot be built'),
  ],
)
def test_config_of_our_own(sources, tmp_path, model, match):
  folder = shutil.copytree(sources['own'][0], tmp_path / 'own')
  path = folder / 'checkpoints/9/config.json'
  record = json.loads(path.read_text())
  path.write_text(json.dumps(record | {'model': record['model'] | model}))
  fuzz.seal(folder)  # or its checksum would be what is refused
  refused('switch_jax', folder, match)


def test_own_arrays_that_the_files_cannot_hold(sources, tmp_path):
  folder = shutil.copytree(sources['own'][3], tmp_path / 'own')
  path = folder / 'checkpoints/9/state/params.token_embedder.embedding/.zarray'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'shape': [2**34, 10], 'chunks': [2**20, 10]}))
  fuzz.seal(folder)
  refused('switch_jax', folder, 'the arrays of .* would have .* bytes, and its files have')
