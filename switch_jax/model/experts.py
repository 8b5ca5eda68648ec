"""What a Switch layer does with its tokens: pure functions over arrays, run by every shard on its own.

Decide (`routing`), move (`dispatch`, `destination`), compute the local experts, move back; or, where nothing is
dropped, gather the tokens of all experts' shards and compute runs of rows (`kernels.apply_to_all`).

Where a model axis splits the experts' widths too, each of its devices moves its part of the tokens' width only, as the
paper's code does: through the all-to-all in parts, gathered over the model axis for the product with the input kernels,
summed and split again after the output kernel, and back in parts. Without an exchange the devices of the model axis
have the same tokens, and their outputs are summed.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from switch_jax.config import ConfigError, ModelConfig
from switch_jax.kernels import apply_to_all, decisions, expert_product, forms
from switch_jax.kernels.drop_free import Product, block_size
from switch_jax.model import destination, dispatch
from switch_jax.model.layers import activate, input_kernel_names
from switch_jax.model.routing import Routing, RoutingStatistics, expert_capacity, route
from switch_jax.parallel import Layout, lift

Kind = Literal['mlp', 'linear']
Kernels = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Experts:
  """What is known of a layer before any array is: what its experts are, and where they lie.

  Attributes:
    config: the model's.
    layout: where tokens and experts lie.
    deterministic: evaluation.
    kind: an expert is the feed-forward network `mlp`, or one `linear` map.
    out_dim: width of its output.
    never_drop: as many slots as needed and one group, whatever the configuration says.
  """

  config: ModelConfig
  layout: Layout
  deterministic: bool
  kind: Kind
  out_dim: int
  never_drop: bool = False


def apply(
  how: Experts,
  x: jax.Array,
  logits: jax.Array,
  real: jax.Array,
  noise: dict[str, jax.Array],
  kernels: Kernels,
  dropout_key: jax.Array | None,
  bias: jax.Array | None = None,
) -> tuple[jax.Array, RoutingStatistics]:
  """Sends every token through its experts.

  Args:
    how: the layer.
    x: tokens `[batch, length, embed]`.
    logits: of the router, `[batch, length, num_experts]`.
    real: bool `[batch, length]`, False for padding.
    noise: `gumbel` or `uniform` for `routing.route`, first axes as `x`.
    kernels: float32 `[num_experts, fan_in, fan_out]` by name.
    dropout_key: of expert dropout; None for none.
    bias: float32 `[num_experts]`, what is added to the scores for the choice; None for nothing.

  Returns:
    As `switch.SwitchLayer`.
  """
  layout = how.layout
  model, per_token = layout.model_axes or None, P(layout.token_axes)
  x_part = y_part = P(layout.token_axes, None, layout.exchanged_width_axes or None)
  if how.kind == 'linear':
    y_part = P(layout.token_axes, None, model)
  kernel_parts = {name: P(layout.expert_axes, None, model) for name in kernels}
  if how.kind == 'mlp':
    kernel_parts['wo'] = P(layout.expert_axes, model)
  return layout.per_token_shard(
    functools.partial(_apply_on_shard, how),
    (x_part, per_token, per_token, jax.tree.map(lambda _: per_token, noise), kernel_parts, P(), P()),
    (y_part, per_token),
    by_width=True,
  )(x, logits, real, noise, kernels, dropout_key, bias)


def _apply_on_shard(how, x, logits, real, noise, kernels, dropout_key, bias):
  """What one (data, expert) shard computes of `apply`."""
  moe, layout = how.config.experts, how.layout
  rows, length, width = x.shape
  group_rows = (not how.never_drop and moe.sequences_per_group) or rows
  if rows % group_rows:
    raise ConfigError(
      f'MoeConfig.sequences_per_group is {group_rows}, but each of the {layout.num_token_shards} (data, expert) shards '
      f'holds {rows} rows; a group never crosses a shard, so it must divide {rows}.'
    )
  groups, tokens = rows // group_rows, group_rows * length
  by_group = lambda array: array.reshape(groups, tokens, *array.shape[2:])  # noqa: E731
  # With `ragged` the tokens of all shards that exchange are one group.
  sharing = layout.num_expert_shards if moe.dispatch == 'ragged' else 1
  capacity = None if how.never_drop else expert_capacity(moe, sharing * tokens, how.deterministic)
  rule = _rule(how, tokens, capacity) if sharing > 1 else None
  routing, statistics = route(
    by_group(logits),
    by_group(real),
    moe,
    None if rule else capacity,
    deterministic=how.deterministic,
    bias=bias,
    decisions=decisions(layout),
    **{name: by_group(value) for name, value in noise.items()},
  )
  if rule:
    axes = layout.expert_axes
    routing, statistics, queue = destination.share_rows(routing, statistics, rule, axes, decisions(layout))
  # Each device of the model axis has its part of a gate's gradient, and of a token's if they have the same tokens.
  routing = dataclasses.replace(routing, gate=lift(routing.gate, layout.model_axes))
  if not layout.exchanged_width_axes:
    x = lift(x, layout.model_axes)
  # Float32 until here, so that the gradient is summed over the data replicas in float32 (see `lift`).
  kernels = {name: lift(kernel, layout.replica_axes).astype(x.dtype) for name, kernel in kernels.items()}
  x = x.reshape(-1, width)
  if rule:
    send, receive = destination.MOVERS[forms(layout)['exchange']](routing, queue, decisions(layout))
    x = send(x)
    if capacity is None:
      y = _on_buffer(how, x, queue, kernels)
    else:
      y = _on_slots(how, x.reshape(-1, capacity, x.shape[-1]), 1, kernels, dropout_key)
    y = receive(y.reshape(-1, y.shape[-1]))
  elif capacity is None:
    y = _without_dropping(how, x, routing, kernels, dropout_key)
  else:
    send, receive = _movers(how, routing, capacity)
    y = receive(_on_slots(how, send(x), groups * layout.num_expert_shards, kernels, dropout_key))
  if how.kind == 'mlp' and layout.model_axes and not layout.exchanged_width_axes:
    y = jax.lax.psum(y, 'model')
  return y.reshape(rows, length, y.shape[-1]), statistics


def network(how: Experts, x: jax.Array, product: Product, keep: jax.Array | None = None) -> jax.Array:
  """Returns what experts compute of rows `[..., n, d]`: `[..., n, out_dim]`, or this device's part of a sum or width.

  Args:
    how: the layer.
    x: rows that are sorted by expert in whatever way `product` knows.
    product: multiplies rows by the kernels of a name.
    keep: expert dropout's factors of the hidden width.
  """
  if how.kind == 'linear':
    return product(x, 'w')
  hidden = activate(how.config, [product(x, name) for name in input_kernel_names(how.config)])
  return product(hidden if keep is None else hidden * keep, 'wo')


def _rule(how, tokens, capacity):
  """Returns which of the tokens that arrive are taken where shards share their rows; None where all are."""
  factor = how.config.experts.ragged_buffer_factor
  if capacity is not None:
    return destination.slots(capacity)
  if factor is None or how.deterministic or how.never_drop:
    return None
  choices = tokens * how.config.experts.experts_per_token
  return destination.buffer(min(int(factor * choices), how.layout.num_expert_shards * choices))


def _movers(how, routing, capacity):
  """Returns the ways of tokens `[n, d]` to the slots of the local experts `[local experts, slots, d]`, and back."""
  layout = how.layout
  moe, shards, axes = how.config.experts, layout.num_expert_shards, layout.expert_axes
  send, receive = dispatch.MOVERS[moe.dispatch](routing, moe.num_experts, capacity, decisions(layout))

  def send_on(x):
    return dispatch.to_expert_shards(send(x), shards, axes)

  def bring_back(y):
    return receive(checkpoint_name(dispatch.from_expert_shards(y, shards, axes), 'from_experts'))

  return send_on, bring_back


def _on_slots(how, x, groups, kernels, dropout_key):
  """Applies the local experts to slots `[local experts, slots, d]` that so many groups have together."""
  layout = how.layout
  x = _whole_width(layout, checkpoint_name(x, 'to_experts'))
  keep = None
  if dropout_key is not None:
    keep = _slot_dropout(how, (*x.shape[:2], kernels['wo'].shape[1]), x.dtype, groups, dropout_key)
  y = network(how, x, lambda rows, name: expert_product(layout, rows, kernels[name]), keep)
  return y if how.kind == 'linear' else _sum_to_parts(layout, y)


def _on_buffer(how, x, queue, kernels):
  """Applies the local experts to a buffer `[rows, d]` in which the run of each may have any length."""
  x = _whole_width(how.layout, checkpoint_name(x, 'to_experts'))
  expert, local_experts = queue.expert_of_row[:, None], queue.their_taken.shape[1]
  gate = lift(jnp.where(expert < local_experts, 1.0, 0.0), how.layout.model_axes)
  on_rows = lambda rows, product, choice: network(how, rows, product)  # noqa: E731
  return _in_runs(how, x, expert, gate, on_rows, kernels, local_experts)


def _in_runs(how, x, expert, gate, on_rows, kernels, num_experts):
  """Applies the local experts to all choices of tokens `[n, d]`, which go to so many, sorted into runs."""
  layout, out_dim = how.layout, kernels['w' if how.kind == 'linear' else 'wo'].shape[-1]
  form, wanted = forms(layout)['drop_free'], how.config.experts.drop_free_block_size
  block = block_size(expert.size, num_experts, form, wanted)
  y = apply_to_all(layout, x, expert, gate, on_rows, kernels, out_dim=out_dim, block=block)
  return y if how.kind == 'linear' else _sum_to_parts(layout, y)


def _without_dropping(how, x, routing, kernels, dropout_key):
  """Applies the experts to all tokens `[n, d]` of a shard; tokens are gathered over the expert axis."""
  moe, layout = how.config.experts, how.layout
  axes, shards = layout.expert_axes, layout.num_expert_shards
  flat: Routing = jax.tree.map(lambda array: array.reshape(1, -1, array.shape[-1]), routing)
  if shards > 1:
    x = dispatch.gather_over_experts(x, axes)
    flat = jax.tree.map(lambda array: jax.lax.all_gather(array, axes, axis=1, tiled=True), flat)
  x = _whole_width(layout, x)
  num_choices, local_experts = flat.expert.size, moe.num_experts // shards
  first_choice = _index_on(layout.replica_axes) * num_choices  # choices are numbered over the global batch

  def on_rows(rows, product, choice):
    keep = None
    if dropout_key is not None:
      keep = _choice_dropout(how, kernels['wo'].shape[1], rows.dtype, first_choice + choice, dropout_key)
    return network(how, rows, product, keep)

  local = flat.expert[0] - _index_on(axes) * local_experts
  is_here = (local >= 0) & (local < local_experts) & (flat.slot[0] >= 0)
  expert, gate = jnp.where(is_here, local, local_experts), jnp.where(is_here, flat.gate[0], 0.0)
  y = _in_runs(how, x, expert, gate, on_rows, kernels, moe.num_experts)
  return y if shards == 1 else dispatch.sum_over_experts(y, axes)


def _slot_dropout(how, shape, dtype, groups, key):
  """Returns dropout factors `[local experts, groups * c, f]`, drawn for each pair of global expert and group."""
  rate = how.config.experts.expert_dropout_rate
  experts, slots, width = shape
  first_expert = _index_on(how.layout.expert_axes) * experts
  first_group = _index_on(how.layout.replica_axes) * groups

  def draw(expert, group):
    pair = jax.random.fold_in(jax.random.fold_in(key, expert), group)
    whole = (slots // groups, width * how.layout.size('model'))
    return _own_part(how.layout, jax.random.bernoulli(pair, 1 - rate, whole))

  keep = jax.vmap(lambda e: jax.vmap(lambda g: draw(e, g))(first_group + jnp.arange(groups)))
  keep = keep(first_expert + jnp.arange(experts)).reshape(shape)
  return (keep / (1 - rate)).astype(dtype)


def _choice_dropout(how, width, dtype, choices, key):
  """Returns dropout factors `[n, f]`, drawn for each global choice `[n]`."""
  rate, whole = how.config.experts.expert_dropout_rate, width * how.layout.size('model')

  def draw(choice):
    return _own_part(how.layout, jax.random.bernoulli(jax.random.fold_in(key, choice), 1 - rate, (whole,)))

  return (jax.vmap(draw)(choices) / (1 - rate)).astype(dtype)


def _index_on(axes: tuple[str, ...]) -> jax.Array | int:
  """Returns this shard's number along mesh axes, 0 along none."""
  return jax.lax.axis_index(axes) if axes else 0


def _whole_width(layout: Layout, x: jax.Array) -> jax.Array:
  """Puts the parts of the last axis that the devices of the model axis have together."""
  return jax.lax.all_gather(x, 'model', axis=x.ndim - 1, tiled=True) if layout.exchanged_width_axes else x


def _sum_to_parts(layout: Layout, y: jax.Array) -> jax.Array:
  """Adds up what the devices of the model axis have computed and leaves each its part of the last axis.

  Where tokens are not exchanged they are summed once they are back in their rows, which are fewer than the slots.
  """
  if not layout.exchanged_width_axes:
    return y
  return jax.lax.psum_scatter(y, 'model', scatter_dimension=y.ndim - 1, tiled=True)


def _own_part(layout: Layout, x: jax.Array) -> jax.Array:
  """Returns the part of the last axis that belongs to this device of the model axis."""
  part = x.shape[-1] // layout.size('model')
  return jax.lax.dynamic_slice_in_dim(x, _index_on(layout.model_axes) * part, part, axis=-1)
