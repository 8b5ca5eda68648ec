"""Parameters as a plain nested dict: their shapes, logical axes, initial values and number.

Flax's metadata boxes end here; everything outside `model/` sees arrays under T5X's names.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from switch_jax.config import ModelConfig
from switch_jax.model.transformer import Transformer
from switch_jax.parallel import Layout

Parameters = dict[str, Any]


def _boxed_init(config: ModelConfig, layout: Layout):
  """Returns `key -> boxed parameters`, on the shortest batch that the layout can split."""
  moe = config.moe
  rows = layout.num_token_shards * ((moe and moe.sequences_per_group) or 1)
  tokens = jnp.ones((rows, 1), jnp.int32)
  model = Transformer(config, layout)
  return lambda key: model.init(key, {'encoder_input_tokens': tokens, 'decoder_input_tokens': tokens})['params']


@functools.lru_cache(maxsize=16)
def _boxed_shapes(config: ModelConfig, layout: Layout) -> Parameters:
  """Returns the shapes of the parameters in Flax's metadata boxes; tracing a large model takes seconds, so once."""
  return jax.eval_shape(_boxed_init(config, layout), jax.random.key(0))


def parameter_axes(config: ModelConfig, layout: Layout) -> Parameters:
  """Returns the logical axis names of every parameter, a tuple for each."""
  boxed = _boxed_shapes(config, layout)
  return jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))


def abstract_parameters(config: ModelConfig, layout: Layout) -> Parameters:
  """Returns a `jax.ShapeDtypeStruct` with its sharding for every parameter; allocates nothing."""
  shapes = nn.meta.unbox(_boxed_shapes(config, layout))
  axes = parameter_axes(config, layout)
  return jax.tree.map(
    lambda x, names: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.sharding(*names)), shapes, axes
  )


def init_parameters(config: ModelConfig, layout: Layout, key: jax.Array) -> Parameters:
  """Returns float32 parameters drawn from a PRNG key; the same numbers on every mesh."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_parameters(config, layout))
  init = _boxed_init(config, layout)
  return jax.jit(lambda key: nn.meta.unbox(init(key)), out_shardings=shardings)(key)


def parameter_count(parameters: Parameters) -> int:
  """Returns the number of scalars in a tree of (abstract) arrays."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(parameters))


def parameter_widths(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Returns the sizes that a model's parameters have along logical axes, experts apart."""
  widths = {
    'embed': (config.emb_dim,),
    'heads': (config.num_heads,),
    'joined_kv': (config.num_heads * config.head_dim,),
    'vocab': (config.vocab_size,),
    'activation_embed': (config.emb_dim,),
    'activation_vocab': (config.vocab_size,),
  }
  switch = {stack: config.switch_layers(stack) for stack in ('encoder', 'decoder')}
  if any(len(layers) < config.num_layers(stack) for stack, layers in switch.items()):
    widths['mlp'] = (config.mlp_dim,)
  if any(switch.values()):
    widths |= {'expert_embed': (config.emb_dim,), 'expert_mlp': (config.moe.expert_mlp_dim or config.mlp_dim,)}
  return widths
