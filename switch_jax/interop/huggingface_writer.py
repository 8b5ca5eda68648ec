"""Writes a Hugging Face checkpoint: config.json and safetensors, in shards when it is large.

A safetensors file is a table of contents and the bytes in its order, so tensors are written straight to their places.
An object store takes files whole, so they are made in a local temporary folder first.
"""

import json
import math
import os
import struct
import tempfile
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from switch_jax.config import ModelConfig
from switch_jax.folders.remote import is_remote
from switch_jax.interop import huggingface_llama, huggingface_tensors, names
from switch_jax.interop.stored import Checkpoint, StoredArray

# Capacity in tokens where none may be dropped; the router compares counts with it and nothing else.
_UNLIMITED = 2**31 - 1
MAX_SHARD_BYTES = 5 * 10**9
_CODES = {'float32': 'F32', 'bfloat16': 'BF16'}


class HuggingFaceWriter:
  """One checkpoint that is being written.

  Args:
    folder: where; it exists.
    checkpoint: what to write; the optimizer's state has no place there.
    config: its model.
    dtype: `float32` or `bfloat16`.
    max_shard_bytes: a larger model is written in several files.
    row_length: tokens of a row in the run's training; None if that is not known.

  Raises:
    ConfigError: Hugging Face's classes cannot represent the model.
  """

  def __init__(
    self,
    folder: epath.Path,
    checkpoint: Checkpoint,
    config: ModelConfig,
    dtype: str,
    max_shard_bytes: int,
    row_length: int | None = None,
  ):
    self._folder, self._dtype, self._model, self._config = folder, dtype, config, to_config(config, dtype, row_length)
    self._family: names.Family = 'llama' if config.is_decoder_only else 't5'
    self.outlives_kill = not is_remote(folder)
    self._staged = None if self.outlives_kill else tempfile.TemporaryDirectory(prefix='switch_jax_shards_')
    self._shards = epath.Path(self._staged.name) if self._staged else folder
    self.outputs: dict[str, StoredArray] = dict(checkpoint.arrays)
    self._numpy = np.dtype(ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype)
    # Every tensor in the order of the outputs: its shape and the number of its shard.
    self._tensors: dict[str, tuple[tuple[int, ...], int]] = {}
    sizes = [0]
    for name, array in self.outputs.items():
      for part in range(array.shape[0]) if '/mlp/expert/' in name else (None,):
        key, transposed = self._name(name, part)
        shape = array.shape if part is None else array.shape[1:]
        size = math.prod(shape) * self._numpy.itemsize
        for copy in self._copies(key):
          if sizes[-1] and sizes[-1] + size > max_shard_bytes:
            sizes.append(0)
          sizes[-1] += size
          self._tensors[copy] = (shape[::-1] if transposed else shape), len(sizes) - 1
    count = len(sizes)
    file = lambda i: f'model-{i + 1:05d}-of-{count:05d}.safetensors' if count > 1 else huggingface_tensors.WEIGHTS  # noqa: E731
    self._files = [file(i) for i in range(count)]
    self._places: dict[str, tuple[str, int]] = {}
    self._headers = [self._header(shard) for shard in range(count)]

  def _name(self, name: str, expert: int | None) -> tuple[str, bool]:
    key, transposed = names.to_huggingface(name, expert, self._family)
    if self._config['model_type'] == 't5':
      key = key.replace('.mlp.', '.DenseReluDense.')
    return key, transposed

  def _copies(self, key: str) -> dict[str, float]:
    """Returns the names under which a tensor is wanted, each with the factor of its values there.

    Where `tie_word_embeddings` is false the Switch classes tie nothing: each stack has a table of its own.
    """
    if self._family == 'llama':
      return huggingface_llama.copies(self._model, key)
    apart = self._config['model_type'] == 'switch_transformers' and not self._config['tie_word_embeddings']
    tables = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
    return dict.fromkeys((key, *(tables if apart and key == 'shared.weight' else ())), 1.0)

  def _header(self, shard: int) -> bytes:
    """Returns the table of contents of a shard, and notes the place of each of its tensors."""
    entries: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
    end = 0
    mine = {key: shape for key, (shape, of) in self._tensors.items() if of == shard}
    for key, shape in mine.items():
      begin, end = end, end + math.prod(shape) * self._numpy.itemsize
      entries[key] = {'dtype': _CODES[self._dtype], 'shape': list(shape), 'data_offsets': [begin, end]}
    text = json.dumps(entries, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    for key in mine:
      self._places[key] = self._files[shard], 8 + len(text) + entries[key]['data_offsets'][0]
    return struct.pack('<Q', len(text)) + text

  def row_multiple(self, name: str) -> int:
    """Returns how many rows of an output must be written together: all of a matrix that is transposed."""
    array = self.outputs[name]
    if '/mlp/expert/' in name or not self._name(name, None)[1]:
      return max(1, 2**23 // max(1, math.prod(array.shape[1:])))
    return array.shape[0]

  def write(self, name: str, start: int, block: np.ndarray) -> None:
    """Writes rows of an output."""
    if '/mlp/expert/' in name:
      for row, matrix in enumerate(block):
        self._put(self._name(name, start + row)[0], 0, matrix.T)
    else:
      key, transposed = self._name(name, None)
      self._put(key, 0 if transposed else start * math.prod(block.shape[1:]), block.T if transposed else block)

  def _put(self, key: str, first: int, values: np.ndarray) -> None:
    for copy, factor in self._copies(key).items():
      data = np.ascontiguousarray(values if factor == 1 else values * np.float32(factor), self._numpy)
      file, place = self._places[copy]
      with open(self._shards / file, 'r+b' if (self._shards / file).exists() else 'w+b') as stream:
        stream.seek(place + first * self._numpy.itemsize)
        stream.write(data.view(np.uint8).data)

  def end(self, name: str) -> None:
    """Everything of an output has been written."""

  def finish(self) -> None:
    """Writes the tables of contents, the index and the configuration."""
    for file, header in zip(self._files, self._headers, strict=True):
      with open(self._shards / file, 'r+b') as stream:
        stream.write(header)
        stream.flush()
        os.fsync(stream.fileno())
      if self._staged:
        (self._shards / file).copy(self._folder / file, overwrite=True)
        (self._shards / file).unlink()
    if len(self._files) > 1:
      total = sum(math.prod(shape) for shape, _ in self._tensors.values()) * self._numpy.itemsize
      weight_map = {key: self._files[shard] for key, (_, shard) in self._tensors.items()}
      _write_json(
        self._folder / huggingface_tensors.INDEX, {'metadata': {'total_size': total}, 'weight_map': weight_map}
      )
    _write_json(self._folder / 'config.json', self._config)  # last: without it this is no checkpoint


def _write_json(path: epath.Path, content: dict[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + '\n')


def to_config(config: ModelConfig, dtype: str = 'float32', row_length: int | None = None) -> dict[str, Any]:
  """Returns what config.json says of a model; arguments as for the writer.

  Raises:
    ConfigError: no class of transformers 5.23 or 5.24 computes this model; says why.
  """
  if config.is_decoder_only:
    return huggingface_llama.to_config(config, dtype, row_length)
  sparse = {stack: config.switch_layers(stack) for stack in ('encoder', 'decoder')}
  moe, gated = config.moe if any(sparse.values()) else None, len(config.mlp_activations) == 2
  activation = names.TO_HUGGINGFACE[config.mlp_activations[0]]
  if gated and config.mlp_activations[1] != 'linear':
    names.refuse(f'ModelConfig.mlp_activations is {config.mlp_activations!r}: the second one must be linear there')
  if gated and moe:
    names.refuse(
      f'ModelConfig.mlp_activations is {config.mlp_activations!r}: its SwitchTransformers classes have one input '
      'kernel (wi), and a gated layer has two (wi_0, wi_1)'
    )
  result = {
    'architectures': ['SwitchTransformersForConditionalGeneration' if moe else 'T5ForConditionalGeneration'],
    'model_type': 'switch_transformers' if moe else 't5',
    'vocab_size': config.vocab_size,
    'd_model': config.emb_dim,
    'd_kv': config.head_dim,
    'd_ff': config.mlp_dim,
    'num_layers': config.num_encoder_layers,
    'num_decoder_layers': config.num_decoder_layers,
    'num_heads': config.num_heads,
    'relative_attention_num_buckets': config.relpos_num_buckets,
    'relative_attention_max_distance': config.relpos_max_distance,
    'dropout_rate': config.dropout_rate,
    'layer_norm_epsilon': config.layer_norm_epsilon,
    'tie_word_embeddings': config.logits_via_embedding,
    'is_encoder_decoder': True,
    'use_cache': True,
    'pad_token_id': 0,
    'eos_token_id': 1,
    'decoder_start_token_id': 0,
    'dtype': dtype,
  }
  if moe is None:
    # What transformers understands as the tanh approximation is called gated-gelu in the gated layer only.
    result['feed_forward_proj'] = f'gated-{config.mlp_activations[0]}' if gated else activation
    return result
  if moe.router != 'top1':
    names.refuse(f"MoeConfig.router is {moe.router!r}: its only router is 'top1'")
  if moe.extra_mlp:
    names.refuse('MoeConfig.extra_mlp is True: it has no dense network after a layer with experts')
  has_dense = any(len(sparse[stack]) < config.num_layers(stack) for stack in sparse)
  expert_dim = moe.expert_mlp_dim or config.mlp_dim
  if has_dense and expert_dim != config.mlp_dim:
    names.refuse(
      f'MoeConfig.expert_mlp_dim is {expert_dim} and ModelConfig.mlp_dim {config.mlp_dim}: there is one d_ff'
    )
  for stack, layers in sparse.items():
    # From the number alone transformers computes `count // number`, which misses layers 1 and 4 of 5, and puts experts
    # into a layer for 0 too. It writes the step beside the number itself, and where it reads one that is what counts.
    result[f'num_sparse_{stack}_layers'] = len(layers)
    result[f'{stack}_sparse_step'] = _sparse_step(stack, layers, config.num_layers(stack))
  explores = moe.explores == 'input_jitter'
  return result | {
    'd_ff': expert_dim,
    'dense_act_fn': activation,
    'num_experts': moe.num_experts,
    'expert_capacity': _UNLIMITED if moe.expert_capacity is None else moe.expert_capacity,
    'router_bias': False,
    'router_dtype': moe.router_dtype,
    'router_ignore_padding_tokens': not moe.padding_takes_slots,
    'router_jitter_noise': moe.jitter_noise if explores else 0.0,
    'router_aux_loss_coef': moe.aux_loss_factor,
    'router_z_loss_coef': moe.router_z_loss_factor,
  }


def _sparse_step(stack: str, layers: tuple[int, ...], count: int) -> int:
  """Returns the step with which Hugging Face puts experts into these layers: those with i % step == 1.

  Step 1 is every layer and 0 none. Of a single layer with experts it is the number of layers, as there.
  """
  if not layers:
    return 0
  for step in (1, count, *range(2, count)):
    if tuple(i for i in range(count) if i % step == 1 or step == 1) == layers:
      return step
  names.refuse(
    f'MoeConfig.{stack}_layers selects {layers} of {count}: it can place experts in layers 1, 1 + k, 1 + 2 k, ... or '
    'in all only'
  )
