"""One training step and one evaluation step, jitted with explicit shardings."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from switch_jax.config import ModelConfig, RunConfig
from switch_jax.data import Batch
from switch_jax.distillation.student import NO_LESSONS, Lessons
from switch_jax.model import Transformer, parameter_axes
from switch_jax.model.losses import Metrics
from switch_jax.parallel import Layout
from switch_jax.training import microbatches
from switch_jax.training.expert_bias import move_biases
from switch_jax.training.optimizer import Optimizer, make_optimizer
from switch_jax.training.schedules import make_schedule
from switch_jax.training.state import StatePlan, TrainState
from switch_jax.training.sums import Objective, Sums

# Numbers of the random streams; part of what makes a resumed run repeat itself, so they never change.
_STREAMS = {'dropout': 0, 'jitter': 1}


def step_streams(seed: int | jax.Array, step: jax.Array) -> dict[str, jax.Array]:
  """Returns the PRNG keys of a step: a function of (seed, step, stream) and never of the mesh."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return {name: jax.random.fold_in(key, number) for name, number in _STREAMS.items()}


def _make_update(
  run: RunConfig, layout: Layout, plan: StatePlan, special_tokens: tuple[int, ...], lessons: Lessons
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Returns `(state, batch, teacher, seed, optimizer, schedule) -> (state, metrics)`, not jitted.

  Seed and learning rate are arguments so that they may be traced; everything else is that of `make_train_step`.
  """
  model, objective = Transformer(run.model, layout, deterministic=False), Objective.of(run, special_tokens)

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

  def update(
    state: TrainState, batch: Batch, teacher: Any, seed: int | jax.Array, optimizer: Optimizer, schedule: optax.Schedule
  ) -> tuple[TrainState, Metrics]:
    streams = step_streams(seed, state.step)
    gradients, sums = whole_gradient(plan.gather(state.params), batch, streams, teacher)
    params, opt_state = optimizer.apply(gradients, state.opt_state, state.params)
    params = move_biases(params, state.params, sums.routers, run.model)
    metrics = sums.metrics(objective)
    metrics |= {'learning_rate': schedule(state.step) * 1.0, 'grad_norm': optax.tree.norm(gradients)}
    return TrainState(state.step + 1, params, opt_state), metrics

  return update


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
  update, schedule = _make_update(run, layout, plan, special_tokens, lessons), make_schedule(run.optimizer)

  def step(state: TrainState, batch: Batch, *teacher: Any) -> tuple[TrainState, Metrics]:
    return update(state, batch, teacher, run.random_seed, plan.optimizer, schedule)

  teacher_shardings = jax.tree.map(lambda x: x.sharding, lessons.arguments)
  return jax.jit(
    step,
    in_shardings=(plan.shardings, layout.batch_sharding(), *teacher_shardings),
    out_shardings=(plan.shardings, layout.replicated()),
    donate_argnums=0,
  )


def make_step_together(
  runs: Sequence[RunConfig], layout: Layout, plan: StatePlan, special_tokens: tuple[int, ...] = ()
) -> Callable[[TrainState, Sequence[Batch]], tuple[TrainState, Metrics]]:
  """Returns the step of several models in one program, `(states, batches) -> (states, metrics)`.

  States and metrics are stacked along a new first axis, in the order of the runs; there is a batch for each. The states
  are donated. Every model gets what `make_train_step` gives it, within rounding.

  Args:
    runs: differ in seed and learning rate; schedules are linear in the rate.
    layout: one device.
    plan, special_tokens: as `make_train_step`.
  """
  first = runs[0]
  update, schedule = _make_update(first, layout, plan, special_tokens, NO_LESSONS), make_schedule(first.optimizer)
  # Of a seed only so many bits enter a key. Arguments, so that other seeds and rates need no compilation.
  seeds = np.array([run.random_seed % 2**32 for run in runs], np.uint32)
  rates = [run.optimizer.learning_rate for run in runs]
  factors = None if len(set(rates)) == 1 else np.array(rates, np.float32) / np.float32(rates[0])

  def one(state: TrainState, batch: Batch, seed: jax.Array, factor: jax.Array | None) -> tuple[TrainState, Metrics]:
    if factor is None:
      return update(state, batch, (), seed, plan.optimizer, schedule)
    scaled = lambda step: factor * schedule(step)  # noqa: E731
    optimizer = make_optimizer(first.optimizer, plan.abstract.params, parameter_axes(first.model), layout, scaled)
    return update(state, batch, (), seed, optimizer, scaled)

  def step(states: TrainState, batches: Sequence[Batch], seeds: jax.Array, factors: jax.Array | None):
    return jax.vmap(one)(states, jax.tree.map(lambda *rows: jnp.stack(rows), *batches), seeds, factors)

  jitted = jax.jit(step, donate_argnums=0)
  return lambda states, batches: jitted(states, batches, seeds, factors)


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
