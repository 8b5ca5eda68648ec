"""Writers of small checkpoints in the formats of other software, to read back and to damage."""

import json
import pathlib

import ml_dtypes
import msgpack
import numpy as np
import pytest
import tensorstore
from safetensors.numpy import save_file

from switch_jax.config import ModelConfig, MoeConfig
from switch_jax.interop import parameter_shapes
from switch_jax.interop.names import to_huggingface
from switch_jax.interop.stored import nest


@pytest.fixture(scope='session')
def checkpoints() -> pathlib.Path:
  """The folder of checkpoints that other software wrote."""
  return pathlib.Path(__file__).parent.parent / 'fixtures'


@pytest.fixture(scope='session')
def sparse_model() -> ModelConfig:
  """A Switch-Base of small, mutually different sizes, with the routing of the released models."""
  moe = MoeConfig(num_experts=3, capacity_rounding='round', min_expert_capacity=4, padding_takes_slots=True)
  return ModelConfig(
    vocab_size=11, emb_dim=10, num_heads=2, head_dim=3, mlp_dim=7, num_encoder_layers=2, num_decoder_layers=4, moe=moe
  )  # fmt: skip


@pytest.fixture(scope='session')
def random_params():
  """`config -> {T5X name: float32 array}`, every number exact in bfloat16."""

  def make(config):
    rng = np.random.default_rng(0)
    normal = lambda shape: rng.normal(size=shape).astype(ml_dtypes.bfloat16).astype(np.float32)  # noqa: E731
    return {name: normal(shape) for name, shape in parameter_shapes(config).items()}

  return make


def packed(array):
  """Returns an array as Flax packs it into msgpack."""
  return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


@pytest.fixture(scope='session')
def write_t5x():
  """Writes a native T5X checkpoint and returns its folder."""

  def write(folder, params, *, state=None, version=3, old_paths=False, driver='file', inline=lambda name: False):
    def leaf(prefix, name, array):
      if inline(name):
        return packed(array)
      place = f'{prefix}.{name.replace("/", ".")}'
      code = {'bfloat16': 'bfloat16', 'uint16': '<u2'}.get(array.dtype.name, array.dtype.str)
      metadata = {'shape': list(array.shape), 'chunks': list(array.shape), 'compressor': {'id': 'gzip', 'level': 1}}
      spec = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{folder}/{place}/'}}
      spec['metadata'] = {**metadata, 'dtype': code, 'fill_value': None}
      tensorstore.open(spec, create=True, open=True).result().write(array).result()
      kvstore = {'driver': driver} | ({'bucket': 't5x-dummy-bucket'} if driver == 'gcs' else {})
      entry = {'driver': 'zarr', 'dtype': array.dtype.name, 'metadata': metadata, 'kvstore': kvstore}
      (entry if old_paths else kvstore)['path'] = f'{place}/' if not old_paths else place
      return entry

    folder.mkdir(exist_ok=True)
    optimizer = {'target': nest({name: leaf('target', name, array) for name, array in params.items()})}
    if state is not None:
      arrays = {name: leaf('state.param_states', name, array) for name, array in state.items()}
      optimizer['state'] = {'step': packed(np.array(17, np.int32)), 'param_states': nest(arrays)}
    (folder / 'checkpoint').write_bytes(msgpack.packb({'version': version, 'optimizer': optimizer}))
    return folder

  return write


@pytest.fixture(scope='session')
def write_huggingface():
  """Writes a Hugging Face checkpoint and returns its folder."""

  def write(folder, params, config, *, shards=None, extra=None, **settings):
    tensors = {}
    for name, array in params.items():
      experts = range(len(array)) if '/expert/' in name else (None,)
      for expert in experts:
        key, transposed = to_huggingface(name, expert)
        part = array if expert is None else array[expert]
        tensors[key] = np.ascontiguousarray(part.T if transposed else part)
    tensors |= extra or {}
    folder.mkdir(exist_ok=True)
    if shards is None:
      save_file(tensors, folder / 'model.safetensors')
    else:
      weight_map = {name: f'model-{i % shards}.safetensors' for i, name in enumerate(sorted(tensors))}
      for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
      (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    content = {
      'model_type': 'switch_transformers' if config.moe else 't5',
      'vocab_size': config.vocab_size,
      'd_model': config.emb_dim,
      'num_heads': config.num_heads,
      'd_kv': config.head_dim,
      'd_ff': config.mlp_dim,
      'num_layers': config.num_encoder_layers,
      'num_decoder_layers': config.num_decoder_layers,
      'tie_word_embeddings': config.logits_via_embedding,
    }
    if config.moe:
      content |= {'num_experts': config.moe.num_experts, 'expert_capacity': 5}
    (folder / 'config.json').write_text(json.dumps(content | settings))
    return folder

  return write


@pytest.fixture(scope='session')
def flatten():
  """`nested dict -> {name joined by /: array}`."""

  def flat(tree, prefix=''):
    found = {}
    for name, node in tree.items():
      found |= flat(node, f'{prefix}{name}/') if isinstance(node, dict) else {f'{prefix}{name}': node}
    return found

  return flat
