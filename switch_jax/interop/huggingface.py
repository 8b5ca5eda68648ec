"""Hugging Face checkpoints: `config.json` and `model.safetensors`, whole or in shards. PyTorch is not needed.

`SwitchTransformersForConditionalGeneration`, and the dense `T5ForConditionalGeneration` (T5, T5 v1.1, mT5).
"""

import functools
import itertools
import math
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from switch_jax.config import ConfigError, first_line, suggest
from switch_jax.folders import checked_json
from switch_jax.folders.checked_json import Fields, shown
from switch_jax.folders.regular_files import regular_file
from switch_jax.interop import hub, names, stored
from switch_jax.interop.stored import Checkpoint, Index, StoredArray

MODEL_TYPES = ('switch_transformers', 't5', 'mt5')
STACKS = ('encoder', 'decoder')
WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'

# Hugging Face's `gelu` is the exact one; the model here has the tanh approximation that T5 uses.
ACTIVATIONS = {
  'relu': 'relu',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu_fast': 'gelu',
  'silu': 'silu',
  'swish': 'silu',
  'linear': 'linear',
}
_HEADER_BYTES = 100_000_000  # at most, as the safetensors package has it
_DTYPES = {'F32': 'float32', 'BF16': 'bfloat16', 'F16': 'float16'}
# Written by old versions, never used: there is no position bias between decoder and encoder.
_UNUSED = ('decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',)


def open_checkpoint(path: str) -> Checkpoint:
  """Opens a Hugging Face checkpoint; reads `config.json` and the headers of the weights only.

  Args:
    path: a local folder, or the name of a model on the hub, see `hub.local_folder`.

  Raises:
    ConfigError: there is no such folder, it is no Hugging Face checkpoint of a known model, or a file is damaged.
  """
  path = hub.local_folder(path)
  folder = pathlib.Path(path)
  if not folder.is_dir():
    what = 'it is a file' if folder.is_file() else 'there is no such folder'
    raise ConfigError(
      f'{path} is no Hugging Face checkpoint ({what}); give the local folder with config.json and {WEIGHTS}, or '
      'the name of a model on the hub, OWNER/NAME.'
    )
  if not (folder / 'config.json').exists():
    found = stored.describe_folder(os.listdir(folder))
    raise ConfigError(f'{path} is no Hugging Face checkpoint, whose folder has a config.json: {found}.')
  config = checked_json.read(folder, 'config.json')
  model_type = config.get('model_type')
  if model_type not in MODEL_TYPES:
    raise ConfigError(
      f'{path} is a model of type {shown(model_type)}; known are {", ".join(MODEL_TYPES)}.'
      f'{suggest(str(model_type), MODEL_TYPES)}'
    )
  fields = Fields(f'{folder}/config.json', config)
  if config.get('pad_token_id') is not None and fields.integer('pad_token_id'):
    raise ConfigError(f'{path} pads with token {config["pad_token_id"]} (pad_token_id); only 0 is supported here.')
  for name in ('tie_word_embeddings', 'scale_decoder_outputs'):
    fields.boolean(name, True)
  arrays = _arrays(path, config, _open_tensors(folder))
  recorded, unclear = _recorded(fields, any(name.endswith('/wi_0/kernel') for name in arrays))
  return Checkpoint(path, arrays, recorded, unclear)


class _Tensor:
  """A tensor of a safetensors file, as it lies there.

  The file is read and not mapped into memory, as the safetensors package does, so that what has been read does not
  count as this process's memory.
  """

  def __init__(self, path: pathlib.Path, name: str, entry: Fields, data_start: int):
    self.shape = entry.sizes('shape')
    dtype = entry.text('dtype')
    self.dtype = _DTYPES.get(dtype, dtype)
    stored.check_dtype(self.dtype, name, str(path))
    self._path, self._start = path, data_start + entry.sizes('data_offsets')[0]

  def read(self, box: Index = ()) -> np.ndarray:
    """Returns the values, or those in a box."""
    dtype = np.dtype(ml_dtypes.bfloat16 if self.dtype == 'bfloat16' else self.dtype)
    rows = box[0] if box else slice(0, self.shape[0]) if self.shape else slice(0, 1)
    row_size = math.prod(self.shape[1:])
    count, offset = (rows.stop - rows.start) * row_size, self._start + rows.start * row_size * dtype.itemsize
    array = np.fromfile(self._path, dtype, count, offset=offset)
    shape = (rows.stop - rows.start, *self.shape[1:]) if self.shape else ()
    if array.size != count:
      raise ConfigError(f'{self._path} ends before its tensors do; the copy is incomplete. Copy it again.')
    return array.reshape(shape)[(slice(None), *box[1:])] if box else array.reshape(shape)


def _open_tensors(folder: pathlib.Path) -> dict[str, _Tensor]:
  """Returns all tensors of a checkpoint by their names in the files."""
  if (folder / WEIGHTS).exists():
    return _open_file(folder, WEIGHTS)
  if not (folder / INDEX).exists():
    found = stored.describe_folder(set(os.listdir(folder)) - {'config.json'})
    raise ConfigError(f'{folder} has neither {WEIGHTS} nor {INDEX}: {found}.')
  index = checked_json.read(folder, INDEX)
  if not isinstance(index.get('weight_map'), dict):
    raise ConfigError(f'{folder / INDEX} has no weight_map; it must say which file holds which tensor. Copy it again.')
  weight_map = Fields(str(folder / INDEX), index).object('weight_map')
  files = {}
  for name in sorted({weight_map.text(tensor) for tensor in weight_map.values}):
    if not regular_file(folder, name).exists():
      raise ConfigError(f'{folder} lacks {name}, which {INDEX} names; copy all shards of the checkpoint.')
    files[name] = _open_file(folder, name)
  lost = [name for name, file in weight_map.values.items() if name not in files[file]]
  if lost:
    raise ConfigError(
      f'{INDEX} of {folder} names tensors that are not in their shards: {stored.enumerate_some(lost)}; index and '
      'shards belong to different checkpoints. Copy all of them again.'
    )
  return {name: files[file][name] for name, file in weight_map.values.items()}


def _open_file(folder: pathlib.Path, name: str) -> dict[str, _Tensor]:
  path = regular_file(folder, name)
  try:
    safetensors.safe_open(path, 'numpy')  # checks header and size: tensors fill the file, none over another
    with path.open('rb') as file:
      (size,) = struct.unpack('<Q', file.read(8))
      header = file.read(min(size, _HEADER_BYTES))
  except (safetensors.SafetensorError, OSError) as error:
    raise ConfigError(
      f'{path} ({path.stat().st_size} bytes) is not a whole safetensors file ({first_line(error)}); the copy is '
      'incomplete. Copy it again.'
    ) from error
  fields = Fields(str(path), checked_json.parse(header, f'the header of {path}', _HEADER_BYTES))
  return {
    tensor: _Tensor(path, tensor, fields.object(tensor), 8 + size)
    for tensor in fields.values
    if tensor != '__metadata__'
  }


def _arrays(path: str, config: Mapping[str, Any], tensors: dict[str, _Tensor]) -> dict[str, StoredArray]:
  """Returns the parameters under T5X's names: matrices transposed, experts stacked, copies of the embedding merged."""
  tensors = {name: tensor for name, tensor in tensors.items() if name not in _UNUSED}
  arrays, experts, unknown = {}, {}, []
  if embeddings := _embeddings(config, tensors):
    first = next(iter(embeddings.values()))
    read = functools.partial(_read_copies, path, embeddings)
    arrays['token_embedder/embedding'] = StoredArray(first.shape, read)
    if not _is_scaled(config) and 'lm_head.weight' not in tensors:
      if not config.get('tie_word_embeddings', True):
        raise ConfigError(
          f'{path} lacks lm_head.weight, and its config.json does not tie it to the embedding; copy all of its files.'
        )
      # A tied table without the scale of T5 1.0 is, here, a table of its own.
      arrays['decoder/logits_dense/kernel'] = StoredArray(first.shape[::-1], lambda box: read(box[::-1]).T)
  for name, tensor in tensors.items():
    match names.from_huggingface(name):
      case None:
        unknown.append(name)
      case t5x, None, transposed:
        shape = tensor.shape[::-1] if transposed else tensor.shape
        arrays[t5x] = StoredArray(shape, functools.partial(_read, tensor, transposed))
      case t5x, expert, _:
        experts.setdefault(t5x, {})[expert] = tensor
  if unknown:
    biased = any(name.endswith('router.classifier.bias') for name in unknown)
    remedy = ' Routers with a bias (router_bias) are not supported.' if biased else ''
    raise ConfigError(
      f'{path} has tensors that no {config["model_type"]} model here has: {stored.enumerate_some(unknown)}.{remedy}'
    )
  for t5x, parts in experts.items():
    arrays[t5x] = _stacked(path, t5x, parts)
  return arrays


def _is_scaled(config: Mapping[str, Any]) -> bool:
  """Whether the logits are the product with the embedding times d_model ** -0.5, as `logits_via_embedding` here.

  From version 5 on Hugging Face writes `tie_word_embeddings: true` for every T5; what `false` used to say, that the
  logits of T5 1.1 are not scaled, stands in `scale_decoder_outputs`.
  """
  return bool(config.get('scale_decoder_outputs', config.get('tie_word_embeddings', True)))


def _embeddings(config: Mapping[str, Any], tensors: dict[str, _Tensor]) -> dict[str, _Tensor]:
  """Takes out of `tensors` all that must be one and the same embedding, and returns it by name."""
  candidates = ['shared.weight', *(f'{stack}.embed_tokens.weight' for stack in STACKS)]
  if _is_scaled(config):
    candidates.append('lm_head.weight')
  found = {name: tensors.pop(name) for name in candidates if name in tensors}
  # Each stack looks up its own table where it has one; where nothing is tied, the shared one is then idle.
  if not config.get('tie_word_embeddings', True) and all(f'{stack}.embed_tokens.weight' in found for stack in STACKS):
    found.pop('shared.weight', None)
  return found


def _read(tensor: _Tensor, transposed: bool, box: Index) -> np.ndarray:
  return tensor.read(box[::-1]).T if transposed else tensor.read(box)


def _read_copies(path: str, copies: Mapping[str, _Tensor], box: Index) -> np.ndarray:
  (first, tensor), *others = copies.items()
  array = tensor.read(box)
  for name, other in others:
    if other.shape != tensor.shape or not np.array_equal(array, other.read(box)):
      raise ConfigError(
        f'{name} of {path} differs from {first}; a model here has one embedding, for both stacks and for logits that '
        'are tied to it. If only lm_head.weight is meant to differ, set tie_word_embeddings to false in config.json.'
      )
  return array


def _stacked(path: str, name: str, parts: dict[int, _Tensor]) -> StoredArray:
  """Returns the matrices of all experts of a layer as one array `[expert, fan_in, fan_out]`."""
  # The highest number may be any: no list of all below it.
  missing = list(itertools.islice((i for i in range(max(parts) + 1) if i not in parts), 5))
  shapes = {part.shape for part in parts.values()}
  if missing or len(shapes) > 1:
    what = f'lacks the experts {missing}' if missing else f'has experts of different shapes {sorted(shapes)}'
    raise ConfigError(f'{name} in {path} {what}; all experts of a layer must be there and alike. Copy all its files.')
  shape = (len(parts), *parts[0].shape[::-1])

  def read(box: Index) -> np.ndarray:
    experts, *matrix = box
    array = np.empty([axis.stop - axis.start for axis in box], np.float32)
    for row, expert in enumerate(range(experts.start, experts.stop)):
      array[row] = parts[expert].read(tuple(matrix[::-1])).T
    return array

  return StoredArray(shape, read)


def _recorded(fields: Fields, gated: bool) -> tuple[dict[str, Any], dict[str, str]]:
  """Returns what `config.json` says in terms of `ModelConfig` and `MoeConfig`, and what has no equal here."""
  config = fields.values
  recorded = {
    'layer_norm_epsilon': fields.number('layer_norm_epsilon', 1e-6),
    'relpos_max_distance': fields.integer('relative_attention_max_distance', 128, minimum=1),
    'dropout_rate': fields.number('dropout_rate', 0.1, below=1.0),
    'mask_padding_queries': False,
    # One sequence is one group, padding is routed like any token, and the capacity is the same in evaluation.
    'sequences_per_group': 1,
    'padding_takes_slots': True,
    'expert_capacity': fields.integer('expert_capacity', 64, minimum=1),
    'expert_dropout_rate': fields.number('dropout_rate', 0.1, below=1.0),
    'jitter_noise': fields.number('router_jitter_noise', 0.01, below=1.0),
    'aux_loss_factor': fields.number('router_aux_loss_coef', 0.001),
    'router_z_loss_factor': fields.number('router_z_loss_coef', 0.001),
    'router_dtype': fields.text('router_dtype', 'float32'),
  }
  sizes = {
    'vocab_size': 'vocab_size',
    'emb_dim': 'd_model',
    'num_heads': 'num_heads',
    'head_dim': 'd_kv',
    'mlp_dim': 'd_ff',
    'num_encoder_layers': 'num_layers',
    'num_decoder_layers': 'num_decoder_layers',
    'num_experts': 'num_experts',
    'relpos_num_buckets': 'relative_attention_num_buckets',
  }
  recorded |= {field: fields.integer(key, minimum=1) for field, key in sizes.items() if config.get(key) is not None}
  unclear = {}
  setting = 'dense_act_fn' if config['model_type'] == 'switch_transformers' else 'feed_forward_proj'
  act_fn = 'relu' if config.get(setting) is None else fields.text(setting) or 'relu'
  # T5's file format says gated-gelu where it means the tanh approximation.
  name = 'gelu_new' if act_fn == 'gated-gelu' else act_fn.removeprefix('gated-')
  if name in ACTIVATIONS:
    recorded['mlp_activations'] = (ACTIVATIONS[name], 'linear') if gated else (ACTIVATIONS[name],)
  else:
    nearest = "('gelu', 'linear')" if gated else "('gelu',)"
    unclear['mlp_activations'] = (
      f'the activation of config.json is {shown(act_fn)}; known are {", ".join(ACTIVATIONS)}. The override '
      f'mlp_activations={nearest} would use the tanh approximation, which differs from the exact gelu by up to 5e-4.'
    )
  if recorded['router_dtype'] not in ('float32', 'bfloat16'):
    unclear['router_dtype'] = (
      f'the router_dtype of config.json is {shown(recorded["router_dtype"])}; override it with float32 or bfloat16.'
    )
    del recorded['router_dtype']
  return recorded, unclear
