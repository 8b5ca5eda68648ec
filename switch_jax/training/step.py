"""One training step and one evaluation step, jitted with explicit shardings."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from switch_jax.config import DistillationConfig, LossConfig, ModelConfig, RunConfig
from switch_jax.distillation.soft_targets import SoftSums, soft_sums
from switch_jax.distillation.student import Distillation, make_targets
from switch_jax.model import Transformer
from switch_jax.model.losses import (
  Metrics,
  RouterCounts,
  TokenSums,
  group_sums,
  router_losses,
  routing_metrics,
  token_sums,
)
from switch_jax.model.routing import RoutingStatistics
from switch_jax.parallel import Layout
from switch_jax.training import microbatches
from switch_jax.training.optimizer import make_schedule
from switch_jax.training.state import StatePlan, TrainState

Batch = dict[str, jax.Array]

# Numbers of the random streams; part of what makes a resumed run repeat itself, so they never change.
_STREAMS = {'dropout': 0, 'jitter': 1}


def step_streams(seed: int, step: jax.Array) -> dict[str, jax.Array]:
  """Returns the PRNG keys of a step: a function of (seed, step, stream) and never of the mesh."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return {name: jax.random.fold_in(key, number) for name, number in _STREAMS.items()}


def loss_of(
  sums: TokenSums,
  statistics: dict[str, RoutingStatistics],
  model: ModelConfig,
  tokens: jax.Array | None = None,
  counts: dict[str, RouterCounts] | None = None,
  soft: SoftSums | None = None,
  distillation: DistillationConfig | None = None,
) -> tuple[jax.Array, Metrics]:
  """Returns the training loss, and the unweighted router losses by layer.

  The loss is the cross-entropy (and z-loss) per real target token of the global batch plus the router losses. With a
  teacher the cross-entropy is (1 - w) hard + w T ** 2 soft.

  Args:
    sums, statistics: of a batch, or of a part of it.
    model: gives the factors of the router losses.
    tokens, counts: what the sums of a part are divided by: target tokens and routed tokens of the whole batch.
    soft, distillation: the sums against the teacher, and its weight w and temperature T; None without a teacher.
  """
  router_loss, metrics = router_losses(statistics, model, counts)
  tokens = jnp.maximum(sums.tokens if tokens is None else tokens, 1.0)
  cross_entropy = sums.cross_entropy
  if soft is not None:
    weight, temperature = distillation.soft_weight, distillation.temperature
    cross_entropy = (1 - weight) * cross_entropy + weight * temperature**2 * soft.cross_entropy
  return (cross_entropy + sums.z_loss) / tokens + router_loss, metrics


def step_metrics(
  sums: TokenSums,
  statistics: dict[str, RoutingStatistics],
  model: ModelConfig,
  soft: SoftSums | None = None,
  distillation: DistillationConfig | None = None,
) -> Metrics:
  """Returns the metrics of a whole batch, scalars by name; `cross_ent_loss_text` leaves out the special tokens.

  Under `routers` are arrays over all layers with a router, sorted by name: what is fetched in every step.
  """
  tokens = jnp.maximum(sums.tokens, 1.0)
  total, metrics = loss_of(sums, statistics, model, soft=soft, distillation=distillation)
  metrics |= routing_metrics(statistics)
  if soft is not None:
    metrics['soft_cross_ent_loss'] = soft.cross_entropy / tokens
    metrics['teacher_divergence'] = soft.divergence / tokens
  if statistics:
    layers = sorted(statistics)
    over_layers = lambda name: jnp.stack([metrics[f'{name}/{layer}'] for layer in layers])  # noqa: E731
    metrics['routers'] = {name: over_layers(name) for name in ('fraction_dropped', 'router_z_loss')}
    loads = [jnp.sum(statistics[layer].expert_tokens, axis=0) for layer in layers]
    metrics['routers']['expert_tokens'] = jnp.stack(loads)
  return metrics | {
    'loss': total,
    'cross_ent_loss': sums.cross_entropy / tokens,
    'cross_ent_loss_text': sums.text_cross_entropy / jnp.maximum(sums.text_tokens, 1.0),
    'z_loss': sums.z_loss / tokens,
    'accuracy': sums.correct / tokens,
    'target_tokens': sums.tokens,
  }


def make_train_step(
  run: RunConfig,
  layout: Layout,
  plan: StatePlan,
  special_tokens: tuple[int, ...] = (),
  distillation: Distillation | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Returns the jitted step `(state, batch) -> (state, metrics)`; the state is donated, metrics as `step_metrics`.

  With a `distillation` whose teacher is computed in the step, it takes `distillation.step_arguments` after the batch.
  """
  model = Transformer(run.model, layout, deterministic=False)
  targets_of = make_targets(distillation, layout)
  teacher_arguments = distillation.step_arguments if distillation else ()
  schedule = make_schedule(run.optimizer)

  def gradient(params, batch, streams, teacher, tokens=None, counts=None):
    """Returns the gradient of the loss, and the sums it is made of."""
    soft_targets = targets_of(batch, teacher) if targets_of else None

    def objective(params):
      logits, statistics = model.apply({'params': params}, batch, rngs=streams)
      targets, weights = batch['decoder_target_tokens'], batch['decoder_loss_weights']
      sums = token_sums(logits, targets, weights, run.loss, special_tokens)
      soft = soft_sums(logits, soft_targets, weights, run.distillation.temperature) if targets_of else None
      loss, _ = loss_of(sums, statistics, run.model, tokens, counts, soft, run.distillation)
      return loss, ((sums, soft), statistics)

    return jax.grad(objective, has_aux=True)(params)

  def gradient_by_microbatches(params, batch, streams, teacher):
    batches = microbatches.split(batch, run.num_microbatches, run.model, layout)
    tokens = jnp.sum(batch['decoder_loss_weights'].astype(jnp.float32))
    counts = microbatches.router_counts(batches, run.model, layout) if run.model.moe else None

    def one(rows, number):
      own = {name: jax.random.fold_in(key, number) for name, key in streams.items()}
      return gradient(params, rows, own, teacher, tokens, counts)

    zeros = jax.tree.map(lambda x, s: jax.lax.with_sharding_constraint(jnp.zeros_like(x), s), params, param_shardings)
    total, (sums, statistics) = microbatches.accumulate(one, batches, zeros)
    groups = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731  [microbatches, groups, ...]
    return total, (jax.tree.map(lambda x: jnp.sum(x, axis=0), sums), jax.tree.map(groups, statistics))

  param_shardings = plan.shardings.params
  whole_gradient = gradient if run.num_microbatches == 1 else gradient_by_microbatches

  def step(state: TrainState, batch: Batch, *teacher: Any) -> tuple[TrainState, Metrics]:
    streams = step_streams(run.random_seed, state.step)
    gradients, ((sums, soft), statistics) = whole_gradient(state.params, batch, streams, teacher)
    params, opt_state = plan.optimizer.apply(gradients, state.opt_state, state.params)
    metrics = step_metrics(sums, statistics, run.model, soft, run.distillation)
    metrics |= {'learning_rate': schedule(state.step) * 1.0, 'grad_norm': optax.tree.norm(gradients)}
    return TrainState(state.step + 1, params, opt_state), metrics

  return jax.jit(
    step,
    in_shardings=(plan.shardings, layout.batch_sharding(), *jax.tree.map(lambda x: x.sharding, teacher_arguments)),
    out_shardings=(plan.shardings, layout.replicated()),
    donate_argnums=0,
  )


def make_finite_check(layout: Layout, plan: StatePlan) -> Callable[[Any], jax.Array]:
  """Returns the jitted question whether all parameters are finite."""
  check = lambda params: jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]))  # noqa: E731
  return jax.jit(check, in_shardings=(plan.shardings.params,), out_shardings=layout.replicated())


def make_eval_step(
  model_config: ModelConfig,
  layout: Layout,
  plan: StatePlan,
  special_tokens: tuple[int, ...] = (),
  num_groups: int = 0,
) -> Callable[[Any, Batch], dict[str, Any]]:
  """Returns the jitted evaluation `(params, batch) -> sums`, with the evaluation capacity and without noise.

  Args:
    model_config: what is computed.
    layout: where.
    plan: gives the shardings of the parameters.
    special_tokens: target tokens that `text_cross_entropy` and `text_tokens` leave out (sentinels, EOS).
    num_groups: groups (languages) of the target tokens, which the batch's `decoder_group_ids` count from 1.

  Returns:
    A function whose result adds up over batches: float32 scalars `tokens`, `cross_entropy`, `correct`, `text_tokens`,
    `text_cross_entropy`, and by layer `dropped`, `routed` and `expert_tokens` `[num_experts]`; with groups also
    `groups`: `tokens` and `cross_entropy` `[num_groups]`.
  """
  model = Transformer(model_config, layout, deterministic=True)

  def step(params: Any, batch: Batch) -> dict[str, Any]:
    logits, statistics = model.apply({'params': params}, batch)
    targets, weights = batch['decoder_target_tokens'], batch['decoder_loss_weights']
    sums = token_sums(logits, targets, weights, LossConfig(), special_tokens)
    groups = {}
    if num_groups:
      groups = {'groups': group_sums(logits, targets, weights, batch['decoder_group_ids'], num_groups)}
    return groups | {
      'tokens': sums.tokens,
      'cross_entropy': sums.cross_entropy,
      'correct': sums.correct,
      'text_tokens': sums.text_tokens,
      'text_cross_entropy': sums.text_cross_entropy,
      'dropped': {layer: jnp.sum(s.dropped) for layer, s in statistics.items()},
      'routed': {layer: jnp.sum(s.tokens) for layer, s in statistics.items()},
      'expert_tokens': {layer: jnp.sum(s.expert_tokens, axis=0) for layer, s in statistics.items()},
    }

  return jax.jit(
    step,
    in_shardings=(plan.shardings.params, layout.batch_sharding()),
    out_shardings=layout.replicated(),
  )
