"""Hugging Face checkpoints: `config.json` and `model.safetensors`, whole or in shards. PyTorch is not needed.

`SwitchTransformersForConditionalGeneration`, and the dense `T5ForConditionalGeneration` (T5, T5 v1.1, mT5); models
without an encoder are those of `huggingface_llama`.
"""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from switch_jax.config import ConfigError, suggest
from switch_jax.folders import checked_json
from switch_jax.folders.checked_json import Fields, shown
from switch_jax.interop import hub, huggingface_llama, huggingface_tensors, names, stored
from switch_jax.interop.huggingface_tensors import WEIGHTS, Tensor
from switch_jax.interop.stored import Checkpoint, StoredArray

MODEL_TYPES = ('switch_transformers', 't5', 'mt5', *huggingface_llama.MODEL_TYPES)
STACKS = ('encoder', 'decoder')

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
  if model_type in huggingface_llama.MODEL_TYPES:
    return huggingface_llama.open_checkpoint(path, fields, huggingface_tensors.open_tensors(folder))
  if config.get('pad_token_id') is not None and fields.integer('pad_token_id'):
    raise ConfigError(f'{path} pads with token {config["pad_token_id"]} (pad_token_id); only 0 is supported here.')
  for name in ('tie_word_embeddings', 'scale_decoder_outputs'):
    fields.boolean(name, True)
  arrays = _arrays(path, config, huggingface_tensors.open_tensors(folder))
  recorded, unclear = _recorded(fields, any(name.endswith('/wi_0/kernel') for name in arrays))
  return Checkpoint(path, arrays, recorded, unclear)


def _arrays(path: str, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, StoredArray]:
  """Returns the parameters under T5X's names, copies of the embedding merged."""
  tensors = {name: tensor for name, tensor in tensors.items() if name not in _UNUSED}
  arrays = {}
  if embeddings := _embeddings(config, tensors):
    first = next(iter(embeddings.values()))
    read = functools.partial(huggingface_tensors.read_copies, path, embeddings)
    arrays['token_embedder/embedding'] = StoredArray(first.shape, read)
    if not _is_scaled(config) and 'lm_head.weight' not in tensors:
      if not config.get('tie_word_embeddings', True):
        raise huggingface_tensors.lacks_head(path)
      # A tied table without the scale of T5 1.0 is, here, a table of its own.
      arrays['decoder/logits_dense/kernel'] = StoredArray(first.shape[::-1], lambda box: read(box[::-1]).T)
  return arrays | huggingface_tensors.named(path, config['model_type'], 't5', tensors)


def _is_scaled(config: Mapping[str, Any]) -> bool:
  """Whether the logits are the product with the embedding times d_model ** -0.5, as `logits_via_embedding` here.

  From version 5 on Hugging Face writes `tie_word_embeddings: true` for every T5; what `false` used to say, that the
  logits of T5 1.1 are not scaled, stands in `scale_decoder_outputs`.
  """
  return bool(config.get('scale_decoder_outputs', config.get('tie_word_embeddings', True)))


def _embeddings(config: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
  """Takes out of `tensors` all that must be one and the same embedding, and returns it by name."""
  candidates = ['shared.weight', *(f'{stack}.embed_tokens.weight' for stack in STACKS)]
  if _is_scaled(config):
    candidates.append('lm_head.weight')
  found = {name: tensors.pop(name) for name in candidates if name in tensors}
  # Each stack looks up its own table where it has one; where nothing is tied, the shared one is then idle.
  if not config.get('tie_word_embeddings', True) and all(f'{stack}.embed_tokens.weight' in found for stack in STACKS):
    found.pop('shared.weight', None)
  return found


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
  act_fn = 'gelu_new' if act_fn == 'gated-gelu' else act_fn
  activations, problem = names.activations(act_fn, gated)
  if problem:
    unclear['mlp_activations'] = problem
  else:
    recorded['mlp_activations'] = activations
  if recorded['router_dtype'] not in ('float32', 'bfloat16'):
    unclear['router_dtype'] = (
      f'the router_dtype of config.json is {shown(recorded["router_dtype"])}; override it with float32 or bfloat16.'
    )
    del recorded['router_dtype']
  return recorded, unclear
