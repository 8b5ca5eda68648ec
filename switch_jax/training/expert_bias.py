"""Balance without a loss: the biases of experts follow the load (Wang et al. 2024, DeepSeek-V3 2024)."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from switch_jax.config import ModelConfig
from switch_jax.interop.scanned import scanned_rows
from switch_jax.model.losses import RouterSums

_NAME = re.compile(r'(encoder|decoder)/layers_(\d+)/(mlp|(?:self_)?attention/query_key_value)/router/expert_bias')


def move_biases(params: Any, before: Any, routers: Mapping[str, RouterSums], model: ModelConfig) -> Any:
  """Returns the parameters with each expert's bias moved by `bias_update_rate` towards an even load.

  Up where the expert got fewer tokens than the mean of its layer, down where it got more; from the bias before the
  step, whatever an optimizer has made of it (weight decay), for it has no gradient.

  Args:
    params: after the optimizer.
    before: before it.
    routers: what the routers did in this step, by layer, of the whole batch.
    model: gives the rate, and which layers are stacked.
  """
  if model.moe is None or model.moe.bias_update_rate is None:
    return params
  rate = model.moe.bias_update_rate

  def one(path, after, bias):
    if path[-1].key != 'expert_bias':
      return after
    name = '/'.join(key.key for key in path)
    layers = scanned_rows(name, model) if model.scan_layers else None
    loads = jnp.stack([routers[_layer(row)].expert_tokens for row in layers or [name]])
    return bias + rate * jnp.sign(jnp.mean(loads, axis=-1, keepdims=True) - loads).reshape(bias.shape)

  return jax.tree_util.tree_map_with_path(one, params, before)


def _layer(name: str) -> str:
  """Returns a layer's name in metrics (`encoder_1`, `decoder_0_attention`) for the name of its bias."""
  match = _NAME.fullmatch(name)
  assert match, name
  stack, number, part = match.groups()
  return f'{stack}_{number}' if part == 'mlp' else f'{stack}_{number}_attention'
