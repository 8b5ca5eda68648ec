"""Safetensors of a Hugging Face folder: whole, in shards, and what users get wrong with them."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from switch_jax.config import ConfigError
from switch_jax.interop import huggingface_tensors

TENSORS = {
  'lm_head.weight': np.arange(12, dtype=np.float32).reshape(4, 3),
  'model.layers.0.block_sparse_moe.experts.0.w1.weight': np.ones((2, 3), np.float32),
  'model.layers.0.block_sparse_moe.experts.1.w1.weight': np.full((2, 3), 2, np.float32),
}


def fails(folder, match):
  with pytest.raises(ConfigError, match=match) as caught:
    huggingface_tensors.open_tensors(folder)
  assert '\n' not in str(caught.value)


@pytest.fixture
def whole(tmp_path):
  """A folder with one file."""
  save_file(TENSORS, tmp_path / 'model.safetensors')
  return tmp_path


@pytest.fixture
def sharded(tmp_path):
  """A folder with a file for each tensor."""
  files = {name: f'model-{i}.safetensors' for i, name in enumerate(TENSORS)}
  for name, file in files.items():
    save_file({name: TENSORS[name]}, tmp_path / file)
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': files}))
  return tmp_path


@pytest.mark.parametrize('kind', ['whole', 'sharded'])
def test_tensors_are_named_and_stacked(request, kind):
  tensors = huggingface_tensors.open_tensors(request.getfixturevalue(kind))
  arrays = huggingface_tensors.named('/m', 'mixtral', 'llama', tensors)
  head, experts = arrays['decoder/logits_dense/kernel'], arrays['decoder/layers_0/mlp/expert/wi_0/kernel']
  np.testing.assert_array_equal(head.read(), TENSORS['lm_head.weight'].T)
  np.testing.assert_array_equal(head.read((slice(1, 3), slice(0, 2))), TENSORS['lm_head.weight'].T[1:3, :2])
  assert experts.shape == (2, 3, 2)
  np.testing.assert_array_equal(experts.read((slice(1, 2),)), np.full((1, 3, 2), 2))
  with pytest.raises(ConfigError, match=r'tensors that no t5 model here has: model\.layers\.0'):
    huggingface_tensors.named('/m', 't5', 't5', tensors)


def test_copies_must_be_equal(whole):
  tensors = huggingface_tensors.open_tensors(whole)
  copies = dict(zip('abc', (tensors[name] for name in (*TENSORS, 'lm_head.weight')), strict=False))
  same = {'a': copies['a'], 'b': copies['a']}
  box = (slice(0, 2), slice(0, 3))
  np.testing.assert_array_equal(huggingface_tensors.read_copies('/m', same, box), TENSORS['lm_head.weight'][:2])
  with pytest.raises(ConfigError, match='b of /m differs from a'):
    huggingface_tensors.read_copies('/m', copies, box)


def test_no_weights(whole):
  (whole / 'model.safetensors').rename(whole / 'pytorch_model.bin')
  fails(whole, r'has neither model.safetensors nor .*PyTorch pickles, which are not read; .* safetensors')


@pytest.mark.parametrize('keep', [0, 100, -1])
def test_truncated_weights(whole, keep):
  raw = (whole / 'model.safetensors').read_bytes()
  (whole / 'model.safetensors').write_bytes(raw[:keep])
  fails(whole, rf'model.safetensors \({len(raw[:keep])} bytes\) is not a whole safetensors file .* Copy it again')


def test_lost_shards(sharded):
  shutil.copy(sharded / 'model-1.safetensors', sharded / 'model-0.safetensors')
  fails(sharded, 'names tensors that are not in their shards: lm_head.weight; index and shards belong to different')
  (sharded / 'model-0.safetensors').unlink()
  fails(sharded, 'lacks model-0.safetensors, which model.safetensors.index.json names')
  (sharded / 'model.safetensors.index.json').write_text('{}')
  fails(sharded, 'has no weight_map')


@pytest.mark.parametrize('dtype', [np.int8, np.float64])
def test_wrong_dtype(tmp_path, dtype):
  save_file({'lm_head.weight': np.zeros((4, 3), dtype)}, tmp_path / 'model.safetensors')
  fails(tmp_path, 'lm_head.weight in .* is stored as [IF]')
