"""Losses as sums, so that shards and microbatches add up, and what the metrics report of them."""

import dataclasses

import jax
import jax.numpy as jnp

from switch_jax.config import LossConfig, ModelConfig
from switch_jax.model.routing import RoutingStatistics

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSums:
  """Sums over target tokens, float32 scalars; divide by `tokens` for the mean.

  Attributes:
    tokens: target tokens with weight.
    cross_entropy: in nats, label smoothing included.
    z_loss: z-loss of the output logits, its factor included.
    correct: tokens whose most likely prediction is the target.
    text_tokens, text_cross_entropy: the same without the tokens that any model soon learns (sentinels, EOS).
  """

  tokens: jax.Array
  cross_entropy: jax.Array
  z_loss: jax.Array
  correct: jax.Array
  text_tokens: jax.Array
  text_cross_entropy: jax.Array


def token_sums(
  logits: jax.Array, targets: jax.Array, weights: jax.Array, config: LossConfig, special_tokens: tuple[int, ...] = ()
) -> TokenSums:
  """Returns the sums of cross-entropy, z-loss and correct predictions.

  Label smoothing is T5X's: 1 - s on the target, the rest spread over the other entries, less the entropy of that
  distribution, so that a perfect prediction has loss 0.

  Args:
    logits: float32 `[batch, length, vocab]`.
    targets: int32 `[batch, length]`.
    weights: `[batch, length]`, 0 where there is no target.
    config: z-loss and label smoothing.
    special_tokens: targets that are not text.
  """
  weights = weights.astype(jnp.float32)
  vocab_size = logits.shape[-1]
  log_partition, target_logit = _log_partition_and_target(logits, targets)
  cross_entropy = log_partition - target_logit
  if config.label_smoothing > 0:
    low = config.label_smoothing / (vocab_size - 1)
    confidence = 1.0 - config.label_smoothing
    floor = confidence * jnp.log(confidence) + (vocab_size - 1) * low * jnp.log(low + 1e-20)
    cross_entropy = log_partition - (confidence - low) * target_logit - low * jnp.sum(logits, axis=-1) + floor
  text = weights * ~jnp.isin(targets, jnp.asarray(special_tokens, targets.dtype))
  return TokenSums(
    tokens=jnp.sum(weights),
    cross_entropy=jnp.sum(weights * cross_entropy),
    z_loss=config.z_loss * jnp.sum(weights * jnp.square(log_partition)),
    correct=jnp.sum(weights * (jnp.argmax(logits, axis=-1) == targets)),
    text_tokens=jnp.sum(text),
    text_cross_entropy=jax.lax.stop_gradient(jnp.sum(text * cross_entropy)),
  )


def _log_partition_and_target(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the logarithm of the sum of exponentials and the target's logit, each `[batch, length]`."""
  # A masked sum and not a lookup: it stays local where the vocabulary is split over devices.
  is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
  return jax.nn.logsumexp(logits, axis=-1), jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)


def group_sums(
  logits: jax.Array, targets: jax.Array, weights: jax.Array, group_ids: jax.Array, num_groups: int
) -> dict[str, jax.Array]:
  """Returns sums over the target tokens of each group, `tokens` and `cross_entropy` in nats, float32 `[num_groups]`.

  Args:
    logits: float32 `[batch, length, vocab]`.
    targets: int32 `[batch, length]`.
    weights: `[batch, length]`, 0 where there is no target.
    group_ids: int32 `[batch, length]`, the number of each token's group, from 1; 0 belongs to none.
    num_groups: how many groups there are.
  """
  log_partition, target_logit = _log_partition_and_target(logits, targets)
  members = jax.nn.one_hot(group_ids - 1, num_groups) * weights.astype(jnp.float32)[..., None]
  values = {'tokens': jnp.ones_like(target_logit), 'cross_entropy': log_partition - target_logit}
  # A product and not a scatter: it stays local where the batch is split over devices. Never rounded to bfloat16.
  contract = lambda x: jnp.einsum('bl,blg->g', x, members, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
  return {name: contract(value) for name, value in values.items()}


def example_sums(
  logits: jax.Array,
  targets: jax.Array,
  segment_ids: jax.Array,
  positions: jax.Array,
  prefix: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Returns how many targets there are, `count`, and how many are right from end to end, `right`, float32 scalars.

  A target all of whose tokens are the likeliest ones after those before them is what greedy decoding gives: its
  prediction equals it.

  Args:
    logits: float32 `[batch, length, vocab]`.
    targets, segment_ids, positions: int32 `[batch, length]`; of packed rows or not. Padding is segment 0.
    prefix: where inputs are in the same rows, `decoder_causal_attention`: 1 for them and the first target; they may be
      wrong. None for none.
  """
  following = lambda x: jnp.pad(x, ((0, 0), (0, 1)))[:, 1:]  # noqa: E731
  is_last = (segment_ids > 0) & (segment_ids != following(segment_ids))
  is_wrong = jnp.argmax(logits, axis=-1) != targets
  if prefix is not None:
    is_wrong &= ~((prefix > 0) & (following(prefix) > 0) & ~is_last)
  wrong = jnp.cumsum(jnp.pad(is_wrong, ((0, 0), (1, 0))), axis=1, dtype=jnp.int32)
  before = jnp.take_along_axis(wrong, jnp.arange(targets.shape[1]) - positions, axis=1)
  is_right = is_last & (wrong[:, 1:] == before)
  return {name: jnp.sum(x, dtype=jnp.float32) for name, x in (('count', is_last), ('right', is_right))}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterCounts:
  """What the router losses of a layer divide by, float32 scalars of at least 1.

  Attributes:
    groups: groups that hold a token that counts.
    tokens: tokens that count.
  """

  groups: jax.Array
  tokens: jax.Array

  @classmethod
  def of(cls, sums: 'RouterSums') -> 'RouterCounts':
    """Returns what sums of a whole batch are divided by."""
    return cls(jnp.maximum(sums.groups, 1.0), jnp.maximum(sums.tokens, 1.0))

  @classmethod
  def of_groups(cls, tokens: jax.Array) -> 'RouterCounts':
    """Returns the counts for groups that hold this many tokens, an array of any shape."""
    return cls(jnp.maximum(jnp.sum(tokens > 0), 1).astype(jnp.float32), jnp.maximum(jnp.sum(tokens), 1.0))


def balance_loss_sum(statistics: RoutingStatistics) -> jax.Array:
  """Returns the sum over the groups with tokens of N * sum_i f_i P_i (equations 4 to 6), without the factor alpha.

  A group's value is 1 when the router is uniform and N when all tokens want one expert. Only P has a gradient.
  """
  tokens = jnp.maximum(statistics.tokens, 1.0)[:, None]
  fraction = statistics.balanced_tokens / tokens
  probability = statistics.expert_probability / tokens
  num_experts = fraction.shape[-1]
  return num_experts * jnp.sum(fraction * probability)  # a group without tokens adds 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterSums:
  """Sums over the groups of one layer, float32; parts of a batch, and batches, add up.

  Attributes:
    groups: groups that hold a token that counts.
    tokens: tokens that count.
    expert_tokens: `[e]`, tokens whose first choice is that expert.
    dropped, entropy, squared_log_partition: as in `RoutingStatistics`.
    balance: `balance_loss_sum`; it has a gradient, as `squared_log_partition`.
  """

  groups: jax.Array
  tokens: jax.Array
  expert_tokens: jax.Array
  dropped: jax.Array
  entropy: jax.Array
  squared_log_partition: jax.Array
  balance: jax.Array

  @classmethod
  def of(cls, statistics: RoutingStatistics) -> 'RouterSums':
    """Adds up the groups."""
    return cls(
      groups=jnp.sum(statistics.tokens > 0).astype(jnp.float32),
      tokens=jnp.sum(statistics.tokens),
      expert_tokens=jnp.sum(statistics.expert_tokens, axis=0),
      dropped=jnp.sum(statistics.dropped),
      entropy=jnp.sum(statistics.entropy),
      squared_log_partition=jnp.sum(statistics.squared_log_partition),
      balance=balance_loss_sum(statistics),
    )


def router_losses(
  routers: dict[str, RouterSums], config: ModelConfig, counts: dict[str, RouterCounts] | None = None
) -> tuple[jax.Array, Metrics]:
  """Returns the weighted router losses of all layers, and their unweighted values by layer.

  The balance loss of a layer is its mean over the non-empty groups, the z-loss its mean over tokens; layers are
  summed (the paper) or averaged (T5X) by `router_loss_aggregate`.

  Args:
    routers: by layer; empty for a dense model.
    config: gives the factors and the aggregate.
    counts: by stack, what is divided by where these sums are of a part of the batch only.
  """
  metrics: Metrics = {}
  if not routers:
    return jnp.zeros(()), metrics
  for layer, value in routers.items():
    whole = counts[layer.partition('_')[0]] if counts else RouterCounts.of(value)
    metrics[f'load_balance_loss/{layer}'] = value.balance / whole.groups
    metrics[f'router_z_loss/{layer}'] = value.squared_log_partition / whole.tokens
  moe = config.experts
  over_layers = jnp.sum if moe.router_loss_aggregate == 'sum' else jnp.mean
  for name in ('load_balance_loss', 'router_z_loss'):
    metrics[name] = over_layers(jnp.stack([metrics[f'{name}/{layer}'] for layer in routers]))
  total = moe.aux_loss_factor * metrics['load_balance_loss'] + moe.router_z_loss_factor * metrics['router_z_loss']
  return total, metrics


def routing_metrics(routers: dict[str, RouterSums], entropy: bool = True) -> Metrics:
  """Returns dropped share, expert load and, if asked for, router entropy, by layer and over all layers.

  Over all layers: dropped share and entropy are means, `expert_load_max_over_mean` is the worst layer's, and
  `experts_unused` the sum. NumPy's arrays give NumPy's, in their own precision.
  """
  metrics: Metrics = {}
  if not routers:
    return metrics
  xp = next(iter(routers.values())).tokens.__array_namespace__()
  over_layers = {'fraction_dropped': xp.mean, 'expert_load_max_over_mean': xp.max, 'experts_unused': xp.sum}
  if entropy:
    over_layers['router_entropy'] = xp.mean
  for layer, value in routers.items():
    tokens, load = xp.maximum(value.tokens, 1.0), value.expert_tokens
    metrics[f'fraction_dropped/{layer}'] = value.dropped / tokens
    metrics[f'expert_load_max_over_mean/{layer}'] = xp.max(load) / xp.maximum(xp.mean(load), 1e-9)
    metrics[f'experts_unused/{layer}'] = xp.sum(load == 0).astype(load.dtype)
    if entropy:
      metrics[f'router_entropy/{layer}'] = value.entropy / tokens
  for name, combine in over_layers.items():
    metrics[name] = combine(xp.stack([metrics[f'{name}/{layer}'] for layer in routers]))
  return metrics
