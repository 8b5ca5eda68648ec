"""The Switch layer: router and experts (paper section 2), in Flax.

The router runs in float32 over global arrays, where its noise is drawn too, so that noise does not depend on the mesh.
Everything from the choice of experts to the combined output runs shard by shard: decide (`routing`), move (`dispatch`
or `drop_free`), compute the local experts, move back.

Where a model axis splits the experts' widths too, each of its devices moves its part of the tokens' width only, as the
paper's code does: through the all-to-all in parts, gathered over the model axis for the product with the input kernels,
summed and split again after the output kernel, and back in parts. Without an exchange the devices of the model axis
have the same tokens, and their outputs are summed.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from switch_jax.config import ConfigError, ModelConfig
from switch_jax.model import dispatch, drop_free, initializers
from switch_jax.model.layers import Kernel, activate, input_kernel_names
from switch_jax.model.routing import RoutingStatistics, expert_capacity, route
from switch_jax.parallel import Layout, lift


class RouterWeights(nn.Module):
  """Holds the router's matrix under T5X's name `router_weights/w/kernel`."""

  config: ModelConfig

  @nn.compact
  def __call__(self) -> jax.Array:
    """Returns the float32 kernel `[embed, num_experts]`."""
    shape = (self.config.emb_dim, self.config.moe.num_experts)
    return Kernel(shape, ('embed', None), initializers.kernel(self.config, 'router'), name='w')()


class Router(nn.Module):
  """The router's logits and, in training, its exploration (sections 2.2 and 2.4, appendix C)."""

  config: ModelConfig
  deterministic: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the logits `[batch, length, num_experts]` of tokens `[batch, length, embed]`, in `router_dtype`."""
    moe = self.config.moe
    kernel = RouterWeights(self.config, name='router_weights')()
    # Section 2.4: only the router sees float32 and noise; the experts get the clean input in the activation dtype.
    y = x.astype(moe.router_dtype)
    if moe.router == 'top1' and not self.deterministic:
      if moe.exploration == 'input_jitter' and moe.jitter_noise > 0:
        low, high = 1 - moe.jitter_noise, 1 + moe.jitter_noise
        y = y * jax.random.uniform(self.make_rng('jitter'), y.shape, y.dtype, low, high)
      elif moe.exploration == 'input_dropout':
        y = nn.Dropout(moe.router_input_dropout_rate, rng_collection='jitter')(y, deterministic=False)
    # The default precision of a float32 product on TPUs is bfloat16.
    return jnp.einsum('bld,de->ble', y, kernel.astype(y.dtype), precision=jax.lax.Precision.HIGHEST)


class ExpertKernels(nn.Module):
  """The experts' matrices, stacked over `num_experts`, under T5X's names."""

  config: ModelConfig
  kind: Literal['mlp', 'linear']
  out_dim: int
  out_init: initializers.Kind

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    """Returns `{name: float32 [num_experts, fan_in, fan_out]}`: `w`, or `wi` (`wi_0`, `wi_1`) and `wo`."""
    config, num_experts = self.config, self.config.moe.num_experts
    out_init = initializers.kernel(config, self.out_init)
    if self.kind == 'linear':
      shape = (num_experts, config.emb_dim, self.out_dim)
      return {'w': Kernel(shape, ('expert', 'expert_embed', None), out_init, name='w')()}
    hidden = config.moe.expert_mlp_dim or config.mlp_dim
    shape, names = (num_experts, config.emb_dim, hidden), ('expert', 'expert_embed', 'expert_mlp')
    init = initializers.kernel(config, 'expert')
    kernels = {name: Kernel(shape, names, init, name=name)() for name in input_kernel_names(config)}
    shape, names = (num_experts, hidden, self.out_dim), ('expert', 'expert_mlp', 'expert_embed')
    return kernels | {'wo': Kernel(shape, names, out_init, name='wo')()}


class SwitchLayer(nn.Module):
  """Routes every token to an expert and returns the gated outputs.

  Attributes:
    kind: what an expert is: the feed-forward network `mlp`, or one `linear` map.
    out_dim: width of the output; None is `emb_dim`.
    out_init: initial values of the last kernel of an expert.
    never_drop: as many slots as needed whatever the configuration says (decoding).
  """

  config: ModelConfig
  layout: Layout
  deterministic: bool
  kind: Literal['mlp', 'linear'] = 'mlp'
  out_dim: int | None = None
  out_init: initializers.Kind = 'expert'
  never_drop: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, real: jax.Array) -> tuple[jax.Array, RoutingStatistics]:
    """Applies the layer.

    Args:
      x: tokens `[batch, length, embed]`.
      real: bool `[batch, length]`, False for padding.

    Returns:
      `[batch, length, out_dim]` in the dtype of `x`, zero where a token was dropped; and the routing statistics,
      arrays whose first axis is all groups of the batch.
    """
    config, moe = self.config, self.config.moe
    out_dim = self.out_dim or config.emb_dim
    logits = Router(config, self.deterministic, name='router')(x)
    kernels = ExpertKernels(config, self.kind, out_dim, self.out_init, name='expert')()

    model = self.layout.model_axes or None
    per_token, noise = P(self.layout.token_axes), {}
    if moe.router == 'top1' and moe.exploration == 'sample' and not self.deterministic:
      noise['gumbel'] = jax.random.gumbel(self.make_rng('jitter'), logits.shape, jnp.float32)
    policy = moe.second_policy_eval if self.deterministic else moe.second_policy_train
    if moe.router == 'top2' and policy == 'random':
      key = jax.random.key(0) if self.deterministic else self.make_rng('jitter')
      noise['uniform'] = jax.random.uniform(key, real.shape, jnp.float32)
    dropout = moe.expert_dropout_rate > 0 and not self.deterministic and self.kind == 'mlp'
    dropout_key = self.make_rng('dropout') if dropout else None

    x_part = y_part = P(self.layout.token_axes, None, self.layout.exchanged_width_axes or None)
    if self.kind == 'linear':
      y_part = P(self.layout.token_axes, None, model)
    kernel_parts = {name: P(self.layout.expert_axes, None, model) for name in kernels}
    if self.kind == 'mlp':
      kernel_parts['wo'] = P(self.layout.expert_axes, model)
    return self.layout.per_token_shard(
      functools.partial(_switch_shard, self),
      (x_part, per_token, per_token, jax.tree.map(lambda _: per_token, noise), kernel_parts, P()),
      (y_part, per_token),
      by_width=True,
    )(x, logits, real, noise, kernels, dropout_key)


@jax.custom_vjp
def expert_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Multiplies the slots of every expert `[e, c, d]` by its matrix `[e, d, f]`; returns `[e, c, f]`.

  The derivative is spelt out because JAX's own computes a kernel's gradient transposed and transposes it afterwards,
  which XLA:CPU does in memory: a tenth of a step with many experts.
  """
  return jnp.einsum('ecd,edf->ecf', x, kernel)


def _expert_product_backward(residuals, gradient):
  x, kernel = residuals
  return jnp.einsum('ecf,edf->ecd', gradient, kernel), jnp.einsum('ecd,ecf->edf', x, gradient)


expert_product.defvjp(lambda x, kernel: (expert_product(x, kernel), (x, kernel)), _expert_product_backward)


def _switch_shard(layer, x, logits, real, noise, kernels, dropout_key):
  """What one (data, expert) shard computes; see `SwitchLayer.__call__` for the arguments."""
  moe, layout = layer.config.moe, layer.layout
  rows, length, width = x.shape
  out_dim = layer.out_dim or layer.config.emb_dim
  if layer.kind == 'linear' or layout.exchanged_width_axes:
    out_dim //= layout.size('model')
  group_rows = moe.sequences_per_group or rows
  if rows % group_rows:
    raise ConfigError(
      f'MoeConfig.sequences_per_group is {group_rows}, but each of the {layout.num_token_shards} (data, expert) shards '
      f'holds {rows} rows; a group never crosses a shard, so it must divide {rows}.'
    )
  groups, tokens = rows // group_rows, group_rows * length
  by_group = lambda array: array.reshape(groups, tokens, *array.shape[2:])  # noqa: E731
  capacity = None if layer.never_drop else expert_capacity(moe, tokens, layer.deterministic)
  routing, statistics = route(
    by_group(logits),
    by_group(real),
    moe,
    capacity,
    deterministic=layer.deterministic,
    **{name: by_group(value) for name, value in noise.items()},
  )
  # Each device of the model axis has its part of a gate's gradient, and of a token's if they have the same tokens.
  routing = dataclasses.replace(routing, gate=lift(routing.gate, layout.model_axes))
  if not layout.exchanged_width_axes:
    x = lift(x, layout.model_axes)
  # Float32 until here, so that the gradient is summed over the data replicas in float32 (see `lift`).
  kernels = {name: lift(kernel, layout.replica_axes).astype(x.dtype) for name, kernel in kernels.items()}
  if capacity is None:
    y = _without_dropping(layer, x.reshape(-1, width), routing, kernels, dropout_key)
  elif capacity == 0:
    y = jnp.zeros((rows * length, out_dim), x.dtype) * x[0, 0, 0]
  elif moe.dispatch == 'einsum':
    sent, gates = dispatch.one_hot_dispatch(routing, moe.num_experts, capacity)
    slots = dispatch.einsum_to_slots(by_group(x), sent)
    y = dispatch.einsum_from_slots(_experts_on_slots(layer, slots, groups, kernels, dropout_key), gates)
  else:
    index = dispatch.slot_index(routing, moe.num_experts, capacity)
    slots = dispatch.to_slots(x.reshape(-1, width), index, routing.expert.shape[-1])
    slots = slots.reshape(moe.num_experts, groups * capacity, width)
    y = _experts_on_slots(layer, slots, groups, kernels, dropout_key)
    gate = routing.gate.reshape(rows * length, -1)
    y = dispatch.from_slots(y.reshape(-1, out_dim), gate, index)
  if layer.kind == 'mlp' and layout.model_axes and not layout.exchanged_width_axes:
    y = jax.lax.psum(y, 'model')
  return y.reshape(rows, length, out_dim), statistics


def _experts_on_slots(layer, slots, groups, kernels, dropout_key):
  """Sends slots `[e, g * c, d]` to their experts' shards, applies the experts and brings the results back."""
  config, layout, expert_shards = layer.config, layer.layout, layer.layout.num_expert_shards
  x = checkpoint_name(dispatch.to_expert_shards(slots, expert_shards, layout.expert_axes), 'to_experts')
  x = _whole_width(layout, x)  # [local experts, expert shards * g * c, d]
  if layer.kind == 'linear':
    y = expert_product(x, kernels['w'])
  else:
    hidden = [expert_product(x, kernels[name]) for name in input_kernel_names(config)]
    hidden = activate(config, hidden)
    if dropout_key is not None:
      hidden = hidden * _slot_dropout(layer, hidden, groups * expert_shards, dropout_key)
    y = _sum_to_parts(layout, expert_product(hidden, kernels['wo']))
  return checkpoint_name(dispatch.from_expert_shards(y, expert_shards, layout.expert_axes), 'from_experts')


def _index_on(axes):
  """Returns this shard's number along mesh axes, 0 along none."""
  return jax.lax.axis_index(axes) if axes else 0


def _whole_width(layout, x):
  """Puts the parts of the last axis that the devices of the model axis have together."""
  return jax.lax.all_gather(x, 'model', axis=x.ndim - 1, tiled=True) if layout.exchanged_width_axes else x


def _sum_to_parts(layout, y):
  """Adds up what the devices of the model axis have computed and leaves each its part of the last axis.

  Where tokens are not exchanged they are summed once they are back in their rows, which are fewer than the slots.
  """
  if not layout.exchanged_width_axes:
    return y
  return jax.lax.psum_scatter(y, 'model', scatter_dimension=y.ndim - 1, tiled=True)


def _own_part(layout, x):
  """Returns the part of the last axis that belongs to this device of the model axis."""
  part = x.shape[-1] // layout.size('model')
  return jax.lax.dynamic_slice_in_dim(x, _index_on(layout.model_axes) * part, part, axis=-1)


def _slot_dropout(layer, hidden, groups, key):
  """Returns dropout factors for `[local experts, groups * c, f]`, drawn for each pair of global expert and group."""
  rate = layer.config.moe.expert_dropout_rate
  experts, slots, width = hidden.shape
  first_expert = _index_on(layer.layout.expert_axes) * experts
  first_group = _index_on(layer.layout.replica_axes) * groups

  def draw(expert, group):
    pair = jax.random.fold_in(jax.random.fold_in(key, expert), group)
    whole = (slots // groups, width * layer.layout.size('model'))
    return _own_part(layer.layout, jax.random.bernoulli(pair, 1 - rate, whole))

  keep = jax.vmap(lambda e: jax.vmap(lambda g: draw(e, g))(first_group + jnp.arange(groups)))
  keep = keep(first_expert + jnp.arange(experts)).reshape(hidden.shape)
  return (keep / (1 - rate)).astype(hidden.dtype)


def _without_dropping(layer, x, routing, kernels, dropout_key):
  """Applies the experts to all tokens `[n, d]` of a shard; tokens are gathered over the expert axis."""
  config, moe = layer.config, layer.config.moe
  axes, shards = layer.layout.expert_axes, layer.layout.num_expert_shards
  local_experts = moe.num_experts // shards
  flat = jax.tree.map(lambda array: array.reshape(1, -1, array.shape[-1]), routing)
  if shards > 1:
    x = dispatch.gather_over_experts(x, axes)
    flat = jax.tree.map(lambda array: jax.lax.all_gather(array, axes, axis=1, tiled=True), flat)
  x = _whole_width(layer.layout, x)
  num_choices = flat.expert.size
  first_choice = _index_on(layer.layout.replica_axes) * num_choices  # choices are numbered over the global batch

  def expert(e, rows, choice):
    if layer.kind == 'linear':
      return rows @ kernels['w'][e]
    hidden = activate(config, [rows @ kernels[name][e] for name in input_kernel_names(config)])
    if dropout_key is not None:
      rate = moe.expert_dropout_rate
      whole = hidden.shape[-1] * layer.layout.size('model')
      draw = lambda c: _own_part(  # noqa: E731
        layer.layout, jax.random.bernoulli(jax.random.fold_in(dropout_key, c), 1 - rate, (whole,))
      )
      hidden = hidden * (jax.vmap(draw)(first_choice + choice) / (1 - rate)).astype(hidden.dtype)
    return hidden @ kernels['wo'][e]

  y = drop_free.apply_experts(
    x,
    flat,
    expert,
    first_expert=_index_on(axes) * local_experts,
    num_experts=local_experts,
    out_dim=kernels['w' if layer.kind == 'linear' else 'wo'].shape[-1],
    block=moe.drop_free_block_size or drop_free.block_size(num_choices, moe.num_experts),
  )
  y = y if layer.kind == 'linear' else _sum_to_parts(layer.layout, y)
  return y if shards == 1 else dispatch.sum_over_experts(y, axes)
