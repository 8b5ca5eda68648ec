"""The configuration of a model from the shapes of its parameters, and from what its files record beside them.

What neither says is taken from the configuration with which the checkpoints were released (T5X and flaxformer).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from switch_jax.config import ConfigError, LayerPattern, ModelConfig, MoeConfig, layer_indices, suggest
from switch_jax.config.validation import field_types
from switch_jax.interop import stored
from switch_jax.interop.stored import Checkpoint
from switch_jax.model.parameters import Shapes, parameter_shapes

_MODEL_FIELDS, _MOE_FIELDS = tuple(field_types(ModelConfig)), tuple(field_types(MoeConfig))
# What the files may record although shapes say it too.
_SIZES = (
  'vocab_size', 'emb_dim', 'num_heads', 'head_dim', 'mlp_dim', 'num_encoder_layers', 'num_decoder_layers',
  'num_experts', 'relpos_num_buckets',
)  # fmt: skip
# Names of missing or unknown parameters in a message; all of them, unless the model is another one altogether.
_LISTED = 100
_MAX_SIZE = 2**31 - 1
# Without effect where `expert_capacity` is set.
_CAPACITY_FIELDS = ('train_capacity_factor', 'eval_capacity_factor', 'min_expert_capacity', 'capacity_rounding')


def model_config(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> ModelConfig:
  """Returns the configuration of a checkpoint.

  Args:
    checkpoint: its shapes and what else it records.
    overrides: fields of `ModelConfig` and `MoeConfig` that win over both.

  Raises:
    ConfigError: parameters are missing, unknown or contradict each other, the files contradict them, or an override is
      unknown, wrong or contradicts them.
  """
  _check_names(overrides)
  path, shapes = checkpoint.path, checkpoint.shapes()
  if checkpoint.config is not None:
    config = checkpoint.config
  else:
    config = _from_shapes(path, shapes)
    _check_parameters(path, shapes, parameter_shapes(config))
    config = _with_recorded(checkpoint, config)
  if config.moe is None and (given := sorted(set(overrides) & set(_MOE_FIELDS))):
    raise ConfigError(
      f'{path} is a dense T5, without experts; {", ".join(given)} can only be given for a model with Switch layers. '
      'Load it without, and make experts of its feed-forward networks by upcycling.'
    )
  for name, problem in checkpoint.unclear.items():
    if name not in overrides and (name in _MODEL_FIELDS or config.moe):
      raise ConfigError(f'{path}: {problem}')
  changed = _replace(config, overrides)
  _check_capacity(path, changed, overrides)
  if parameter_shapes(changed) != shapes:
    _contradiction(path, config, overrides)
  return changed


def _check_names(overrides: Mapping[str, Any]) -> None:
  for name in overrides:
    if name not in _MODEL_FIELDS and name not in _MOE_FIELDS:
      near = suggest(name, (*_MODEL_FIELDS, *_MOE_FIELDS))
      raise ConfigError(f'{name} is no field of ModelConfig or MoeConfig, so it cannot be overridden.{near}')


def _replace(config: ModelConfig, fields: Mapping[str, Any]) -> ModelConfig:
  """Returns the configuration with other values for fields of `ModelConfig` and of its `MoeConfig`."""
  of_moe = {name: value for name, value in fields.items() if name in _MOE_FIELDS}
  of_model = {name: value for name, value in fields.items() if name in _MODEL_FIELDS}
  moe = of_model.pop('moe', config.moe)
  if of_moe and isinstance(moe, MoeConfig):
    moe = dataclasses.replace(moe, **of_moe)
  return dataclasses.replace(config, **of_model, moe=moe)


def _with_recorded(checkpoint: Checkpoint, config: ModelConfig) -> ModelConfig:
  """Returns the configuration with what the files record beside the arrays, which must not contradict the shapes."""
  recorded = {n: v for n, v in checkpoint.recorded.items() if n in _MODEL_FIELDS or config.moe}
  sizes = {name: getattr(config, name) for name in _MODEL_FIELDS} | (vars(config.moe) if config.moe else {})
  for name, value in recorded.items():
    if name in _SIZES and value != sizes[name]:
      raise ConfigError(
        f'config.json of {checkpoint.path} says {name} = {value!r}, but the shapes of its tensors say {sizes[name]!r}; '
        'the two belong to different models.'
      )
  return _replace(config, recorded)


def _check_capacity(path: str, config: ModelConfig, overrides: Mapping[str, Any]) -> None:
  """Refuses overrides that would have no effect."""
  idle = [name for name in _CAPACITY_FIELDS if name in overrides]
  if idle and config.moe and config.moe.expert_capacity is not None:
    raise ConfigError(
      f'{", ".join(idle)} would have no effect: {path} has expert_capacity={config.moe.expert_capacity}, a number '
      'that stands in place of capacity factors. Pass expert_capacity=None too.'
    )


def _contradiction(path: str, config: ModelConfig, overrides: Mapping[str, Any]) -> None:
  """Raises an error that names the overrides which the shapes contradict."""
  before = parameter_shapes(config)
  wrong = []
  for name, value in overrides.items():
    try:
      after = parameter_shapes(_replace(config, {name: value}))
    except ConfigError:  # it only makes sense together with another
      after = None
    if after != before:
      wrong.append(f'{name}={value!r}')
  raise ConfigError(
    f'{", ".join(wrong)} contradicts the parameters of {path}; what their shapes say cannot be overridden, so leave it '
    'out.'
  )


def _check_parameters(path: str, found: Shapes, expected: Shapes) -> None:
  """Raises a `ConfigError` unless names and shapes are exactly the expected ones."""
  for what, names in (('lacks', expected.keys() - found.keys()), ('has the unknown', found.keys() - expected.keys())):
    if names:
      raise ConfigError(
        f'{path} {what} parameters {stored.enumerate_some(names, _LISTED)}; a checkpoint must have all parameters of '
        'an encoder-decoder T5 or Switch model, and no others.'
      )
  wrong = [f'{name} {found[name]} instead of {expected[name]}' for name in expected if found[name] != expected[name]]
  if wrong:
    raise ConfigError(
      f'{path} has shapes that contradict each other: {stored.enumerate_some(wrong, 3)} (judged by the embedding, the '
      'relative-position table and the first layers); the arrays belong to different models.'
    )


def _from_shapes(path: str, shapes: Shapes) -> ModelConfig:
  """Returns what shapes say, completed by the released models' settings."""

  def shape(name: str, rank: int) -> tuple[int, ...]:
    if name not in shapes:
      _check_parameters(path, shapes, {**shapes, name: ()})
    if len(shapes[name]) != rank:
      raise ConfigError(f'{name} in {path} has the shape {shapes[name]}; it must have {rank} axes.')
    if not all(0 < size <= _MAX_SIZE for size in shapes[name]):
      raise ConfigError(
        f'{name} in {path} has the shape {shapes[name]}; sizes are from 1 to {_MAX_SIZE}. It is damaged; copy it again.'
      )
    return shapes[name]

  layers, sparse = {}, {}
  for stack in ('encoder', 'decoder'):
    found = [re.match(rf'{stack}/layers_(\d+)/(mlp/(?:expert|router)/)?', name) for name in shapes]
    layers[stack] = max((int(match[1]) + 1 for match in found if match), default=0)
    if layers[stack] > len(shapes):  # before so many are traced
      raise ConfigError(
        f'{path} has parameters of layer {layers[stack] - 1} of the {stack}, and only {len(shapes)} parameters in all; '
        'a checkpoint must have all of a model. Copy it again.'
      )
    sparse[stack] = tuple(sorted({int(match[1]) for match in found if match and match[2]}))
    shape(f'{stack}/layers_0/pre_mlp_layer_norm/scale', 1)

  vocab_size, emb_dim = shape('token_embedder/embedding', 2)
  num_heads, num_buckets = shape('encoder/relpos_bias/rel_embedding', 2)
  _, joined = shape('encoder/layers_0/attention/query/kernel', 2)
  if joined % num_heads:
    raise ConfigError(
      f'{path} has {num_heads} heads by its relative-position table, but attention kernels of width {joined}, which '
      f'{num_heads} does not divide; the arrays belong to different models.'
    )
  dims, gated, num_experts = {}, False, 0
  for kind, infix, rank in (('dense', '', 2), ('sparse', 'expert/', 3)):
    first = next(
      ((stack, i) for stack in layers for i in range(layers[stack]) if (i in sparse[stack]) == (kind == 'sparse')), None
    )
    if first:
      mlp = f'{first[0]}/layers_{first[1]}/mlp/{infix}'
      gated = f'{mlp}wi_0/kernel' in shapes
      kernel = shape(f'{mlp}{"wi_0" if gated else "wi"}/kernel', rank)
      dims[kind] = kernel[-1]
      num_experts = kernel[0] if kind == 'sparse' else 0
  tied = 'decoder/logits_dense/kernel' not in shapes
  mlp_dim = dims.get('dense', dims.get('sparse'))
  moe = None
  if num_experts:
    moe = MoeConfig(
      num_experts=num_experts,
      encoder_layers=_pattern(sparse['encoder'], layers['encoder']),
      decoder_layers=_pattern(sparse['decoder'], layers['decoder']),
      expert_mlp_dim=None if dims['sparse'] == mlp_dim else dims['sparse'],
      extra_mlp=any('/extra_mlp/' in name for name in shapes),
      **_released_settings(gated, tied, all_sparse='dense' not in dims),
    )
  return ModelConfig(
    vocab_size=vocab_size,
    emb_dim=emb_dim,
    num_heads=num_heads,
    head_dim=joined // num_heads,
    mlp_dim=mlp_dim,
    num_encoder_layers=layers['encoder'],
    num_decoder_layers=layers['decoder'],
    mlp_activations=('gelu', 'linear') if gated else ('relu',),
    logits_via_embedding=tied,
    relpos_num_buckets=num_buckets,
    init='released',
    init_scale=0.1 if moe else 1.0,
    moe=moe,
  )


def _pattern(indices: tuple[int, ...], num_layers: int) -> LayerPattern:
  """Returns `every k-th layer` where the indices are that, else the indices."""
  every = indices[0] + 1 if indices else 0
  return every if every and layer_indices(every, num_layers) == indices else indices


def _released_settings(gated: bool, tied: bool, all_sparse: bool) -> dict[str, Any]:
  """Returns the routing of the released model to whose family a checkpoint belongs: Base and Large, XXL, or C."""
  settings = {
    'train_capacity_factor': 1.25,
    'eval_capacity_factor': 2.0,
    'min_expert_capacity': 4,
    'capacity_rounding': 'round',
    'padding_takes_slots': True,
    'jitter_noise': 0.0,
  }
  if gated and not tied:  # XXL
    settings |= {'eval_capacity_factor': 4.0, 'min_expert_capacity': 2}
  elif all_sparse and not tied:  # C
    settings |= {'train_capacity_factor': 1.0, 'min_expert_capacity': 2}
  return settings


def assumptions(checkpoint: Checkpoint, config: ModelConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a configuration that neither the checkpoint nor the caller said, with their values.

  Fields of `MoeConfig` that concern other routers than the model's are left out, as is what only training uses.
  """
  if checkpoint.config is not None:
    return {}
  of_shapes = {
    *_SIZES,
    'logits_via_embedding',
    'encoder_layers',
    'decoder_layers',
    'expert_mlp_dim',
    'moe',
    'extra_mlp',
  }
  told = {*checkpoint.recorded, *overrides, *of_shapes}
  values = {name: getattr(config, name) for name in ('mlp_activations', 'relpos_max_distance', 'layer_norm_epsilon')}
  if config.moe:
    names = ('train_capacity_factor', 'eval_capacity_factor', 'min_expert_capacity', 'capacity_rounding')
    if config.moe.expert_capacity is not None:
      names = ()
    names += ('sequences_per_group', 'padding_takes_slots', 'jitter_noise', 'aux_loss_factor', 'router')
    values |= {name: getattr(config.moe, name) for name in names}
  values['mask_padding_queries'] = config.mask_padding_queries
  return {name: value for name, value in values.items() if name not in told}
