"""Parameters as a plain nested dict: their shapes, logical axes, initial values and number.

Flax's metadata boxes end here; everything outside `model/` sees arrays under T5X's names.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from switch_jax.config import ModelConfig
from switch_jax.model.transformer import Transformer
from switch_jax.parallel import Layout

Parameters = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

# Fields on which no parameter's name, shape or axes depend: models that differ in nothing else are traced once. A field
# that is missing here costs a trace.
_IDLE_IN_MODEL = (
  'dropout_rate', 'activation_dtype', 'gradient_dtype', 'init', 'init_scale', 'relpos_max_distance', 'rotary_base',
  'layer_norm_epsilon', 'scan_unroll', 'remat_policy', 'mask_padding_queries', 'prefix_lm',
)  # fmt: skip
_IDLE_IN_MOE = (
  'router', 'num_selected_experts', 'router_scores', 'normalize_gates', 'gate_scale', 'train_capacity_factor',
  'eval_capacity_factor', 'expert_capacity', 'min_expert_capacity', 'capacity_rounding', 'sequences_per_group',
  'padding_takes_slots', 'slot_priority', 'exploration', 'jitter_noise', 'router_z_loss_factor',
  'router_loss_aggregate', 'expert_dropout_rate', 'router_dtype', 'dispatch', 'ragged_buffer_factor',
)  # fmt: skip


def _boxed_init(config: ModelConfig, layout: Layout) -> Callable[[jax.Array], Parameters]:
  """Returns `key -> boxed parameters`, on the shortest batch that the layout can split."""
  moe = config.moe
  rows = layout.num_token_shards * ((moe and moe.sequences_per_group) or 1)
  model = Transformer(config, layout)

  def init(key):
    tokens = jnp.ones((rows, 1), jnp.int32)
    names = ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_causal_attention')
    return model.init(key, dict.fromkeys(names, tokens))['params']

  return init


def _with_defaults(config: Any, names: tuple[str, ...], **values: Any) -> Any:
  """Returns a configuration with the default values of these fields, and with these values."""
  defaults = {f.name: f.default for f in dataclasses.fields(config) if f.name in names}
  return dataclasses.replace(config, **defaults, **values)


def _boxed_shapes(config: ModelConfig) -> Parameters:
  """Returns the shapes of the parameters in Flax's metadata boxes, which know the axes' names."""
  # The factor of the balance loss is idle too; models with biases must have 0.
  moe = config.moe and _with_defaults(config.moe, _IDLE_IN_MOE, aux_loss_factor=0.0)
  return _traced(_with_defaults(dataclasses.replace(config, moe=moe), _IDLE_IN_MODEL))


@functools.lru_cache(maxsize=64)
def _traced(config: ModelConfig) -> Parameters:
  """Traces a model once, whatever the mesh: a large one takes up to a second."""
  return jax.eval_shape(_boxed_init(config, Layout.without_devices()), jax.eval_shape(lambda: jax.random.key(0)))


def _is_box(node: Any) -> bool:
  return isinstance(node, nn.meta.AxisMetadata)


def parameter_shapes(config: ModelConfig) -> Shapes:
  """Returns the shape of every parameter by T5X name, layers one by one (as with `scan_layers=False`).

  Needs no device.
  """
  shapes = nn.meta.unbox(_boxed_shapes(dataclasses.replace(config, scan_layers=False)))
  return {jax.tree_util.keystr(k, simple=True, separator='/'): x.shape for k, x in jax.tree.leaves_with_path(shapes)}


def parameter_axes(config: ModelConfig) -> Parameters:
  """Returns the logical axis names of every parameter, a tuple for each."""
  return jax.tree.map(lambda box: tuple(box.names), _boxed_shapes(config), is_leaf=_is_box)


def dtypes_in_layers(config: ModelConfig) -> Parameters:
  """Returns the dtype that the layers cast every parameter to before they use it.

  The activations', but float32 for router, norms and position bias; and for all parameters of a model with Switch
  attention, whose layers compute in float32.
  """
  has_switch_attention = any(config.switch_attention_layers(stack) for stack in ('encoder', 'decoder'))
  activations = 'float32' if has_switch_attention else config.activation_dtype
  stays = lambda names: None in names or 'relpos_buckets' in names  # noqa: E731
  return jax.tree.map(
    lambda names: jnp.dtype('float32' if stays(names) else activations),
    parameter_axes(config),
    is_leaf=lambda x: isinstance(x, tuple),
  )


def parameter_widths(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Returns the sizes that a model's parameters and activations have along logical axes, experts apart."""
  widths = {'activation_embed': {config.emb_dim}, 'activation_vocab': {config.vocab_size}}
  for box in jax.tree.leaves(_boxed_shapes(config), is_leaf=_is_box):
    for name, size in zip(box.names, box.value.shape, strict=True):
      if name not in (None, 'expert'):
        widths.setdefault(name, set()).add(size)
  return {name: tuple(sorted(sizes)) for name, sizes in widths.items()}


def abstract_parameters(config: ModelConfig, layout: Layout) -> Parameters:
  """Returns a `jax.ShapeDtypeStruct` with its sharding for every parameter; allocates nothing."""
  return jax.tree.map(
    lambda box: jax.ShapeDtypeStruct(box.value.shape, box.value.dtype, sharding=layout.sharding(*box.names)),
    _boxed_shapes(config),
    is_leaf=_is_box,
  )


def init_parameters(config: ModelConfig, layout: Layout, key: jax.Array) -> Parameters:
  """Returns float32 parameters drawn from a PRNG key; the same numbers on every mesh."""
  return _jitted_init(config, layout)(key)


@functools.lru_cache(maxsize=8)
def _jitted_init(config: ModelConfig, layout: Layout) -> Callable[[jax.Array], Parameters]:
  """Returns the program that draws parameters, the same one for every seed."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_parameters(config, layout))
  init = _boxed_init(config, layout)
  return jax.jit(lambda key: nn.meta.unbox(init(key)), out_shardings=shardings)


def parameter_count(parameters: Parameters) -> int:
  """Returns the number of scalars in a tree of (abstract) arrays."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(parameters))
