"""One training step and one evaluation step, jitted with explicit shardings."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from switch_jax.config import LossConfig, ModelConfig, RunConfig
from switch_jax.model import Transformer
from switch_jax.model.losses import Metrics, router_losses, routing_metrics, token_sums
from switch_jax.parallel import Layout
from switch_jax.training.optimizer import make_schedule
from switch_jax.training.state import StatePlan, TrainState

Batch = dict[str, jax.Array]

# Numbers of the random streams; part of what makes a resumed run repeat itself, so they never change.
_STREAMS = {'dropout': 0, 'jitter': 1}


def step_streams(seed: int, step: jax.Array) -> dict[str, jax.Array]:
  """Returns the PRNG keys of a step: a function of (seed, step, stream) and never of the mesh."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return {name: jax.random.fold_in(key, number) for name, number in _STREAMS.items()}


def loss_and_metrics(
  params: Any,
  batch: Batch,
  streams: dict[str, jax.Array],
  model: Transformer,
  loss: LossConfig,
  special_tokens: tuple[int, ...] = (),
) -> tuple[jax.Array, Metrics]:
  """Returns the training loss of a batch and its metrics.

  The loss is the cross-entropy (and z-loss) per real target token of the global batch plus the router losses.
  `cross_ent_loss_text` leaves out the `special_tokens`.
  """
  logits, statistics = model.apply({'params': params}, batch, rngs=streams)
  sums = token_sums(logits, batch['decoder_target_tokens'], batch['decoder_loss_weights'], loss, special_tokens)
  tokens = jnp.maximum(sums.tokens, 1.0)
  router_loss, metrics = router_losses(statistics, model.config)
  total = (sums.cross_entropy + sums.z_loss) / tokens + router_loss
  metrics |= routing_metrics(statistics)
  metrics |= {
    'loss': total,
    'cross_ent_loss': sums.cross_entropy / tokens,
    'cross_ent_loss_text': sums.text_cross_entropy / jnp.maximum(sums.text_tokens, 1.0),
    'z_loss': sums.z_loss / tokens,
    'accuracy': sums.correct / tokens,
    'target_tokens': sums.tokens,
  }
  return total, metrics


def make_train_step(
  run: RunConfig, layout: Layout, plan: StatePlan, special_tokens: tuple[int, ...] = ()
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns the jitted step `(state, batch) -> (state, metrics)`; the state is donated, metrics are scalars."""
  model = Transformer(run.model, layout, deterministic=False)
  schedule = make_schedule(run.optimizer)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    streams = step_streams(run.random_seed, state.step)
    differentiate = jax.value_and_grad(loss_and_metrics, has_aux=True)
    (_, metrics), gradients = differentiate(state.params, batch, streams, model, run.loss, special_tokens)
    updates, opt_state = plan.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {'learning_rate': schedule(state.step) * 1.0, 'grad_norm': optax.tree.norm(gradients)}
    return TrainState(state.step + 1, params, opt_state), metrics

  return jax.jit(
    step,
    in_shardings=(plan.shardings, layout.batch_sharding()),
    out_shardings=(plan.shardings, layout.replicated()),
    donate_argnums=0,
  )


def make_eval_step(
  model_config: ModelConfig, layout: Layout, plan: StatePlan, special_tokens: tuple[int, ...] = ()
) -> Callable[[Any, Batch], dict[str, Any]]:
  """Returns the jitted evaluation `(params, batch) -> sums`, with the evaluation capacity and without noise.

  Args:
    model_config: what is computed.
    layout: where.
    plan: gives the shardings of the parameters.
    special_tokens: target tokens that `text_cross_entropy` and `text_tokens` leave out (sentinels, EOS).

  Returns:
    A function whose result adds up over batches: float32 scalars `tokens`, `cross_entropy`, `correct`, `text_tokens`,
    `text_cross_entropy`, and by layer `dropped`, `routed` and `expert_tokens` `[num_experts]`.
  """
  model = Transformer(model_config, layout, deterministic=True)

  def step(params: Any, batch: Batch) -> dict[str, Any]:
    logits, statistics = model.apply({'params': params}, batch)
    targets, weights = batch['decoder_target_tokens'], batch['decoder_loss_weights']
    sums = token_sums(logits, targets, weights, LossConfig(), special_tokens)
    return {
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
