"""Hugging Face's models without an encoder: `LlamaForCausalLM` and, with experts in every layer, `MixtralForCausalLM`.

What is computed there in another place is, here, part of a parameter: attention divides its scores by sqrt(head_dim),
in the query's kernel; logits that are tied to the embedding have no factor there, so they are a table of their own on
the side that lacks the factor; and where several heads share keys and values, each has a copy.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from switch_jax.config import ConfigError, ModelConfig, MoeConfig
from switch_jax.folders.checked_json import Fields, shown
from switch_jax.interop import huggingface_tensors, infer_config, names
from switch_jax.interop.huggingface_tensors import Tensor
from switch_jax.interop.stored import Checkpoint, Index, StoredArray
from switch_jax.model import parameter_shapes

MODEL_TYPES = ('llama', 'mixtral')
_EMBEDDING, _HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
# Written by old versions, computed from the base since.
_UNUSED = re.compile(r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq')
# What of `MoeConfig` Mixtral has one value of.
_ROUTING: dict[str, Any] = {
  'router': 'topk', 'router_scores': 'softmax', 'normalize_gates': True, 'gate_scale': 1.0, 'bias_update_rate': None,
  'num_shared_experts': 0, 'extra_mlp': False, 'router_dtype': 'float32',
}  # fmt: skip


def open_checkpoint(path: str, fields: Fields, tensors: Mapping[str, Tensor]) -> Checkpoint:
  """Opens a Llama or Mixtral; reads no array.

  Args:
    path: the folder, for messages.
    fields: its config.json, whose `model_type` is one of `MODEL_TYPES`.
    tensors: all of its tensors.

  Raises:
    ConfigError: it computes something that no model here does, or tensors are missing, unknown or contradict it.
  """
  config = fields.values
  for name in ('attention_bias', 'mlp_bias'):
    if fields.boolean(name, False):
      raise _unknown(path, f'has biases ({name})')
  is_sparse = config['model_type'] == 'mixtral'
  heads, emb_dim = (fields.integer(name, minimum=1) for name in ('num_attention_heads', 'hidden_size'))
  key_heads = fields.values.get('num_key_value_heads', 8 if is_sparse else heads)
  key_heads = heads if key_heads is None else fields.integer('num_key_value_heads', key_heads, minimum=1)
  if heads % key_heads:
    raise fields.wrong('num_key_value_heads', f'a divisor of num_attention_heads, which is {heads}')
  head_dim = emb_dim // heads
  if fields.values.get('head_dim') is not None or not head_dim:
    head_dim = fields.integer('head_dim', minimum=1)
  arrays = _arrays(path, fields, tensors, head_dim, heads // key_heads)
  activation, problem = names.activations(fields.text('hidden_act', 'silu'), gated=True)
  recorded = {
    'vocab_size': fields.integer('vocab_size', minimum=1),
    'emb_dim': emb_dim,
    'num_heads': heads,
    'head_dim': head_dim,
    'mlp_dim': fields.integer('intermediate_size', minimum=1),
    'num_encoder_layers': 0,
    'num_decoder_layers': fields.integer('num_hidden_layers', minimum=1),
    'positions': 'rotary',
    'rotary_base': _rotary_base(path, fields, 1e6 if is_sparse else 1e4),
    'mlp_activations': activation,
    'logits_via_embedding': False,
    'layer_norm_epsilon': float(fields.number('rms_norm_eps', 1e-5 if is_sparse else 1e-6)),
  }
  routing = _routing(path, fields) if is_sparse else {}
  _check_sizes(path, arrays, recorded, routing.get('num_experts'))
  moe = MoeConfig(**routing) if is_sparse else None
  model = ModelConfig(
    **recorded, mask_padding_queries=not is_sparse, init='released', init_scale=0.1 if is_sparse else 1.0, moe=moe
  )
  shapes = {name: array.shape for name, array in arrays.items()}
  infer_config.check_parameters(path, shapes, parameter_shapes(model), f'a {config["model_type"]} model')
  unclear = {'mlp_activations': problem} if problem else {}
  return Checkpoint(path, arrays, recorded | routing, unclear, model)


def _unknown(path: str, what: str) -> ConfigError:
  return ConfigError(f'{path} {what}, which no model here has; it cannot be read.')


def _rotary_base(path: str, fields: Fields, default: float) -> float:
  """Returns the base of rotary positions. Versions before 5 write it beside `rope_scaling`."""
  places = [fields]
  places += [fields.object(name) for name in ('rope_parameters', 'rope_scaling') if fields.values.get(name) is not None]
  base = default
  for place in places:
    kind = place.values.get('rope_type', place.values.get('type', 'default'))
    if kind != 'default':
      raise _unknown(path, f'has scaled rotary positions (rope_scaling of the type {shown(kind)})')
    if place.number('partial_rotary_factor', 1.0) != 1:
      raise _unknown(path, 'turns a part of each head only (partial_rotary_factor)')
    base = place.number('rope_theta', base)
  return float(base)


def _routing(path: str, fields: Fields) -> dict[str, Any]:
  """Returns the `MoeConfig` of a Mixtral: nothing is dropped, in training neither, and padding is routed too."""
  window = fields.values.get('sliding_window')
  if window is not None and fields.integer('sliding_window') < fields.integer('max_position_embeddings', 2**17):
    raise _unknown(path, f'attends to the last {window} tokens only (sliding_window)')
  jitter = fields.number('router_jitter_noise', 0.0, below=1.0)
  return {
    'num_experts': fields.integer('num_local_experts', 8, minimum=1),
    'router': 'topk',
    'num_selected_experts': fields.integer('num_experts_per_tok', 2, minimum=1),
    'normalize_gates': True,
    'encoder_layers': (),
    'decoder_layers': 1,
    'train_capacity_factor': None,
    'eval_capacity_factor': None,
    'padding_takes_slots': True,
    'aux_loss_factor': float(fields.number('router_aux_loss_coef', 0.001)),
  } | ({'exploration': 'input_jitter', 'jitter_noise': float(jitter)} if jitter else {})


def _arrays(
  path: str, fields: Fields, tensors: Mapping[str, Tensor], head_dim: int, heads_of_key: int
) -> dict[str, StoredArray]:
  """Returns the parameters under T5X's names, with what they have here and lack there."""
  tensors = {name: tensor for name, tensor in tensors.items() if not _UNUSED.fullmatch(name)}
  arrays = {}
  if fields.boolean('tie_word_embeddings', False):
    if copies := {name: tensors.pop(name) for name in (_EMBEDDING, _HEAD) if name in tensors}:
      shape = next(iter(copies.values())).shape
      read = functools.partial(huggingface_tensors.read_copies, path, copies)
      arrays['token_embedder/embedding'] = StoredArray(shape, read)
      arrays['decoder/logits_dense/kernel'] = StoredArray(shape[::-1], lambda box: read(box[::-1]).T)
  elif _HEAD not in tensors:
    raise huggingface_tensors.lacks_head(path)
  arrays |= huggingface_tensors.named(path, fields.values['model_type'], 'llama', tensors)
  for name, array in arrays.items():
    if name.endswith('/self_attention/query/kernel'):
      arrays[name] = _scaled(array, head_dim**-0.5)
    elif name.endswith(('/self_attention/key/kernel', '/self_attention/value/kernel')) and len(array.shape) == 2:
      arrays[name] = _repeated(array, head_dim, heads_of_key)
  return arrays


def _scaled(array: StoredArray, factor: float) -> StoredArray:
  return StoredArray(array.shape, lambda box: array.read(box) * np.float32(factor), array.chunk_rows)


def _repeated(array: StoredArray, head_dim: int, times: int) -> StoredArray:
  """Returns a kernel `[embed, heads * kv]` with each head that many times, one after the other."""

  def fetch(box: Index) -> np.ndarray:
    columns = np.arange(box[1].start, box[1].stop)
    there = columns // (head_dim * times) * head_dim + columns % head_dim
    first, last = there.min(initial=0), there.max(initial=-1)
    return array.read((box[0], slice(int(first), int(last) + 1)))[:, there - first]

  return StoredArray((array.shape[0], array.shape[1] * times), fetch, array.chunk_rows) if times > 1 else array


def _check_sizes(
  path: str, arrays: Mapping[str, StoredArray], said: Mapping[str, Any], num_experts: int | None
) -> None:
  """Raises a `ConfigError` where config.json and the tensors differ in a size, before a model of it is traced."""
  hidden = 'decoder/layers_0/mlp/wi_0/kernel' if num_experts is None else 'decoder/layers_0/mlp/expert/wi_0/kernel'
  joined = {'num_heads * head_dim': said['num_heads'] * said['head_dim']}
  experts = {} if num_experts is None else {'num_experts': num_experts}
  of = lambda *sizes: {name: said[name] for name in sizes}  # noqa: E731
  for name, expected in (
    ('token_embedder/embedding', of('vocab_size', 'emb_dim')),
    ('decoder/layers_0/self_attention/query/kernel', of('emb_dim') | joined),
    (hidden, experts | of('emb_dim', 'mlp_dim')),
  ):
    if name not in arrays:
      shapes = {name: array.shape for name, array in arrays.items()}
      infer_config.check_parameters(path, shapes, shapes | {name: ()}, 'the model of its config.json')
    found = dict(zip(expected, arrays[name].shape, strict=False))
    if found != expected or len(found) < len(arrays[name].shape):
      differ = [size for size in expected if found.get(size) != expected[size]]
      what = differ[0] if differ else name
      raise infer_config.disagreement(path, what, expected.get(what, expected), found.get(what, arrays[name].shape))
  layers = [re.match(r'decoder/layers_(\d+)/', name) for name in arrays]
  count = max(int(match[1]) + 1 for match in layers if match)
  if count != said['num_decoder_layers']:
    raise infer_config.disagreement(path, 'num_decoder_layers', said['num_decoder_layers'], count)


def to_config(config: ModelConfig, dtype: str, row_length: int | None) -> dict[str, Any]:
  """Returns what config.json says of a model without an encoder.

  Args:
    config: the model.
    dtype: of the parameters.
    row_length: tokens of a row in training, for those who ask how long a text may be; None if that is not known.

  Raises:
    ConfigError: neither class of transformers 5.23 or 5.24 computes this model; says why.
  """
  refuse = functools.partial(names.refuse, others='switch_jax')
  fixed = (
    ('positions', 'rotary', 'positions are rotary'),
    ('prefix_lm', False, 'every token sees those before it alone'),
  )
  for name, only, rule in fixed:
    if getattr(config, name) != only:
      refuse(f'ModelConfig.{name} is {getattr(config, name)!r}: in Llama and Mixtral {rule}')
  if len(config.mlp_activations) != 2 or config.mlp_activations[1] != 'linear':
    rule = 'in Llama and Mixtral there are two, the second linear'
    refuse(f'ModelConfig.mlp_activations is {config.mlp_activations!r}: {rule}')
  sparse, moe = config.switch_layers('decoder'), config.moe
  if sparse and len(sparse) < config.num_decoder_layers:
    refuse(
      f'MoeConfig.decoder_layers selects {sparse} of {config.num_decoder_layers}: there are experts in all layers '
      '(Mixtral) or in none (Llama)'
    )
  if not sparse and config.emb_dim % config.num_heads:
    refuse(f'ModelConfig.num_heads is {config.num_heads}: Llama wants a divisor of emb_dim, which is {config.emb_dim}')
  result: dict[str, Any] = {
    'architectures': ['MixtralForCausalLM' if sparse else 'LlamaForCausalLM'],
    'model_type': 'mixtral' if sparse else 'llama',
    'vocab_size': config.vocab_size,
    'hidden_size': config.emb_dim,
    'intermediate_size': config.mlp_dim,
    'num_hidden_layers': config.num_decoder_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_heads,
    'head_dim': config.head_dim,
    'hidden_act': names.TO_HUGGINGFACE[config.mlp_activations[0]],
    'rms_norm_eps': config.layer_norm_epsilon,
    'rope_theta': config.rotary_base,  # for versions before 5
    'rope_parameters': {'rope_theta': config.rotary_base, 'rope_type': 'default'},
    'max_position_embeddings': row_length or 2048,
    'attention_dropout': 0.0,
    'tie_word_embeddings': False,
    'use_cache': True,
    'pad_token_id': 0,
    'bos_token_id': 0,
    'eos_token_id': 1,
    'dtype': dtype,
  }
  if not sparse or moe is None:
    return result | {'attention_bias': False, 'mlp_bias': False}
  for name, only in _ROUTING.items():
    if getattr(moe, name) != only:
      refuse(f'MoeConfig.{name} is {getattr(moe, name)!r}: in Mixtral it is {only!r}')
  return result | {
    'intermediate_size': moe.expert_mlp_dim or config.mlp_dim,
    'num_local_experts': moe.num_experts,
    'num_experts_per_tok': moe.num_selected_experts,
    'router_aux_loss_coef': moe.aux_loss_factor,
    'router_jitter_noise': moe.jitter_noise if moe.explores == 'input_jitter' else 0.0,
    'sliding_window': None,
  }


def copies(config: ModelConfig, key: str) -> dict[str, float]:
  """Returns the names under which a tensor is written, each with the factor of its values there."""
  if key == _EMBEDDING and config.logits_via_embedding:
    return {key: 1.0, _HEAD: config.emb_dim**-0.5}
  return {key: config.head_dim**0.5 if key.endswith('.self_attn.q_proj.weight') else 1.0}
