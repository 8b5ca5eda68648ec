"""What a pass over target tokens adds up, what training minimises of it, and the metrics it is divided into.

Shards, microbatches and batches of an evaluation are added leaf by leaf; means are taken once, of the whole.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from switch_jax.config import DistillationConfig, LossConfig, ModelConfig, RunConfig
from switch_jax.data import Batch
from switch_jax.distillation.soft_targets import SoftSums, SoftTargets, soft_sums
from switch_jax.model.losses import (
  Metrics,
  RouterCounts,
  RouterSums,
  TokenSums,
  example_sums,
  group_sums,
  router_losses,
  routing_metrics,
  token_sums,
)
from switch_jax.model.routing import RoutingStatistics


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is minimised: cross-entropy (and z-loss) per real target token of the global batch, plus the router losses.

  With a teacher the cross-entropy is (1 - w) hard + w T ** 2 soft.

  Attributes:
    model: gives the factors of the router losses.
    loss: z-loss and label smoothing.
    distillation: gives the weight w and the temperature T of a teacher; None without one.
    special_tokens: target tokens that `cross_ent_loss_text` leaves out (sentinels, EOS).
  """

  model: ModelConfig
  loss: LossConfig = dataclasses.field(default_factory=LossConfig)
  distillation: DistillationConfig | None = None
  special_tokens: tuple[int, ...] = ()

  @classmethod
  def of(cls, run: RunConfig, special_tokens: tuple[int, ...] = ()) -> 'Objective':
    """Returns the objective of a run."""
    return cls(run.model, run.loss, run.distillation, special_tokens)

  def sums(
    self,
    logits: jax.Array,
    batch: Batch,
    statistics: Mapping[str, RoutingStatistics],
    soft_targets: SoftTargets | None = None,
    num_groups: int = 0,
    count_examples: bool = False,
  ) -> 'Sums':
    """Adds up what a model has made of a batch, or of a part of it.

    Args:
      logits: float32 `[batch, length, vocab]`.
      batch: with `decoder_target_tokens`, `decoder_loss_weights` and, for groups, `decoder_group_ids`.
      statistics: of the routers by layer.
      soft_targets: a teacher's distributions.
      num_groups: groups (languages) of the target tokens, which the group ids count from 1.
      count_examples: count the targets that are right from end to end.
    """
    targets, weights = batch['decoder_target_tokens'], batch['decoder_loss_weights']
    soft, groups, examples = None, None, None
    if soft_targets is not None and self.distillation is not None:
      soft = soft_sums(logits, soft_targets, weights, self.distillation.temperature)
    if num_groups:
      groups = group_sums(logits, targets, weights, batch['decoder_group_ids'], num_groups)
    if count_examples:
      places = batch['decoder_segment_ids'], batch['decoder_positions'], batch.get('decoder_causal_attention')
      examples = example_sums(logits, targets, *places)
    hard = token_sums(logits, targets, weights, self.loss, self.special_tokens)
    return Sums(hard, {layer: RouterSums.of(value) for layer, value in statistics.items()}, soft, groups, examples)

  def value(
    self, sums: 'Sums', tokens: jax.Array | None = None, counts: dict[str, RouterCounts] | None = None
  ) -> tuple[jax.Array, Metrics]:
    """Returns the loss, and the unweighted router losses by layer.

    Args:
      sums: of a batch, or of a part of it.
      tokens, counts: what the sums of a part are divided by: target tokens and routed tokens of the whole batch.
    """
    router_loss, metrics = router_losses(sums.routers, self.model, counts)
    tokens = jnp.maximum(sums.targets.tokens if tokens is None else tokens, 1.0)
    cross_entropy = sums.targets.cross_entropy
    if sums.soft is not None and self.distillation is not None:
      weight, temperature = self.distillation.soft_weight, self.distillation.temperature
      cross_entropy = (1 - weight) * cross_entropy + weight * temperature**2 * sums.soft.cross_entropy
    return (cross_entropy + sums.targets.z_loss) / tokens + router_loss, metrics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
  """Sums over target tokens and routed tokens; a pytree whose leaves add up.

  Attributes:
    targets: over the target tokens.
    routers: over the tokens of each layer with a router, by layer (`encoder_1`); empty for a dense model.
    soft: over the target tokens, against a teacher; None without one.
    groups: over the target tokens of each group, `tokens` and `cross_entropy` `[groups]`; None without groups.
    examples: `count` of targets and how many are `right` from end to end; None where they are not counted.
  """

  targets: TokenSums
  routers: dict[str, RouterSums]
  soft: SoftSums | None = None
  groups: dict[str, jax.Array] | None = None
  examples: dict[str, jax.Array] | None = None

  def metrics(self, objective: Objective | None = None, groups: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the metrics of the whole that was added up, scalars by name, in nats per target token where a loss.

    NumPy's arrays give NumPy's, in their own precision.

    Args:
      objective: what training minimised of these sums: the loss, its parts and the routers' entropy are then there
        too, and under `routers` arrays over all layers with a router, sorted by name, which are fetched every step.
      groups: names of the groups; those with target tokens get `cross_ent_loss/<group>` and `target_tokens/<group>`.
    """
    sums, xp = self.targets, self.targets.tokens.__array_namespace__()
    tokens = xp.maximum(sums.tokens, 1.0)
    metrics = {
      'cross_ent_loss': sums.cross_entropy / tokens,
      'cross_ent_loss_text': sums.text_cross_entropy / xp.maximum(sums.text_tokens, 1.0),
      'accuracy': sums.correct / tokens,
      'target_tokens': sums.tokens,
      **routing_metrics(self.routers, entropy=objective is not None),
    }
    if self.examples is not None:
      metrics['example_accuracy'] = self.examples['right'] / xp.maximum(self.examples['count'], 1.0)
    if self.groups:
      for name, count, loss in zip(groups, self.groups['tokens'], self.groups['cross_entropy'], strict=True):
        if count:
          metrics |= {f'cross_ent_loss/{name}': loss / count, f'target_tokens/{name}': count}
    if objective is None:
      return metrics
    metrics['loss'], of_routers = objective.value(self)
    metrics |= of_routers | {'z_loss': sums.z_loss / tokens}
    if self.soft is not None:
      metrics['soft_cross_ent_loss'] = self.soft.cross_entropy / tokens
      metrics['teacher_divergence'] = self.soft.divergence / tokens
    if self.routers:
      layers = sorted(self.routers)
      metrics['routers'] = {
        name: jnp.stack([metrics[f'{name}/{layer}'] for layer in layers])
        for name in ('fraction_dropped', 'router_z_loss')
      } | {'expert_tokens': jnp.stack([self.routers[layer].expert_tokens for layer in layers])}
    return metrics
