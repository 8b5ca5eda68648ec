"""One training step and one evaluation step, jitted with explicit shardings."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from switch_jax.config import ModelConfig, RunConfig
from switch_jax.data import Batch
from switch_jax.distillation.student import NO_LESSONS, Lessons
from switch_jax.model import Transformer
from switch_jax.model.losses import Metrics
from switch_jax.parallel import Layout
from switch_jax.training import microbatches
from switch_jax.training.schedules import make_schedule
from switch_jax.training.state import StatePlan, TrainState
from switch_jax.training.sums import Objective, Sums

# Numbers of the random streams; part of what makes a resumed run repeat itself, so they never change.
_STREAMS = {'dropout': 0, 'jitter': 1}


def step_streams(seed: int, step: jax.Array) -> dict[str, jax.Array]:
  """Returns the PRNG keys of a step: a function of (seed, step, stream) and never of the mesh."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return {name: jax.random.fold_in(key, number) for name, number in _STREAMS.items()}


def make_train_step(
  run: RunConfig,
  layout: Layout,
  plan: StatePlan,
  special_tokens: tuple[int, ...] = (),
  lessons: Lessons = NO_LESSONS,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Returns the jitted step `(state, batch, *lessons.arguments) -> (state, metrics)`.

  The state is donated; the metrics are those of `Sums.metrics`, `learning_rate` and `grad_norm`.

  Args:
    run: gives model, objective and optimizer.
    layout: where.
    plan: gives shardings and optimizer.
    special_tokens: target tokens that `cross_ent_loss_text` leaves out (sentinels, EOS).
    lessons: what a teacher has to say of each batch.
  """
  model, objective = Transformer(run.model, layout, deterministic=False), Objective.of(run, special_tokens)
  schedule = make_schedule(run.optimizer)

  def gradient(params, batch, streams, teacher, tokens=None, counts=None):
    """Returns the gradient of the loss, and the sums it is made of."""
    soft_targets = lessons.soft_targets(batch, *teacher)

    def loss(params):
      logits, statistics = model.apply({'params': params}, batch, rngs=streams)
      sums = objective.sums(logits, batch, statistics, soft_targets)
      return objective.value(sums, tokens, counts)[0], sums

    gradients, sums = jax.grad(loss, has_aux=True)(params)
    return plan.scatter(gradients), sums

  def gradient_by_microbatches(params, batch, streams, teacher):
    batches = microbatches.split(batch, run.num_microbatches, run.model, layout)
    tokens = jnp.sum(batch['decoder_loss_weights'].astype(jnp.float32))
    counts = microbatches.router_counts(batches, run.model, layout) if run.model.moe else None

    def one(rows, number):
      own = {name: jax.random.fold_in(key, number) for name, key in streams.items()}
      return gradient(params, rows, own, teacher, tokens, counts)

    zeros = jax.tree.map(lambda x, s: jax.lax.with_sharding_constraint(jnp.zeros_like(x), s), params, param_shardings)
    total, sums = microbatches.accumulate(one, batches, zeros)
    return total, jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)

  param_shardings = plan.shardings.params
  whole_gradient = gradient if run.num_microbatches == 1 else gradient_by_microbatches

  def step(state: TrainState, batch: Batch, *teacher: Any) -> tuple[TrainState, Metrics]:
    streams = step_streams(run.random_seed, state.step)
    gradients, sums = whole_gradient(plan.gather(state.params), batch, streams, teacher)
    params, opt_state = plan.optimizer.apply(gradients, state.opt_state, state.params)
    metrics = sums.metrics(objective)
    metrics |= {'learning_rate': schedule(state.step) * 1.0, 'grad_norm': optax.tree.norm(gradients)}
    return TrainState(state.step + 1, params, opt_state), metrics

  teacher_shardings = jax.tree.map(lambda x: x.sharding, lessons.arguments)
  return jax.jit(
    step,
    in_shardings=(plan.shardings, layout.batch_sharding(), *teacher_shardings),
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
  count_examples: bool = False,
) -> Callable[[Any, Batch], Sums]:
  """Returns the jitted evaluation `(params, batch) -> sums`, with the evaluation capacity and without noise.

  Args:
    model_config: what is computed.
    layout: where.
    plan: gives the shardings of the parameters.
    special_tokens: target tokens that `cross_ent_loss_text` leaves out (sentinels, EOS).
    num_groups: groups (languages) of the target tokens, which the batch's `decoder_group_ids` count from 1.
    count_examples: count the targets that are right from end to end.
  """
  model, objective = Transformer(model_config, layout), Objective(model_config, special_tokens=special_tokens)

  def step(params: Any, batch: Batch) -> Sums:
    logits, statistics = model.apply({'params': plan.gather(params)}, batch)
    return objective.sums(logits, batch, statistics, num_groups=num_groups, count_examples=count_examples)

  return jax.jit(
    step,
    in_shardings=(plan.shardings.params, layout.batch_sharding()),
    out_shardings=layout.replicated(),
  )
