"""The learning rate as a function of the step, on optax."""

import jax
import jax.numpy as jnp
import optax

from switch_jax.config import ConfigError, OptimizerConfig
from switch_jax.config.named_objects import failing, load_object


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
  """Returns the learning rate as a function of the step.

  `rsqrt` is T5's: learning_rate / sqrt(max(step, warmup_steps)), flat during warm-up.

  Raises:
    ConfigError: the schedule is an object of the user that cannot be used.
  """
  if ':' in config.schedule:
    return _own_schedule(config)
  if config.schedule == 'rsqrt':
    return lambda step: config.learning_rate * jax.lax.rsqrt(jnp.maximum(step, config.warmup_steps) * 1.0)
  after = _after_warmup(config)
  if not config.warmup_steps:
    return after
  up = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
  return optax.join_schedules([up, after], [config.warmup_steps])


def _after_warmup(config: OptimizerConfig) -> optax.Schedule:
  """Returns the learning rate as a function of the steps since warm-up."""
  peak, last = config.learning_rate, config.final_fraction * config.learning_rate
  if config.schedule == 'constant':
    return optax.constant_schedule(peak)
  steps = config.decay_steps - config.warmup_steps
  if config.schedule == 'cosine':
    return optax.cosine_decay_schedule(peak, steps, alpha=config.final_fraction)
  if config.schedule == 'warmup_stable_decay':
    return optax.linear_schedule(
      peak, last, config.decay_steps - config.decay_begin, config.decay_begin - config.warmup_steps
    )
  return optax.linear_schedule(peak, last, steps)


def _own_schedule(config: OptimizerConfig) -> optax.Schedule:
  """Returns what the user's function makes of the configuration, once it has been tried."""
  field = 'OptimizerConfig.schedule'
  make = load_object(config.schedule, field)
  with failing(f'{field} is {config.schedule!r}, which failed'):
    schedule = make(config)
    rate = jax.eval_shape(lambda step: schedule(step) * 1.0, jax.ShapeDtypeStruct((), jnp.int32))
  if getattr(rate, 'shape', None) != () or not jnp.issubdtype(rate.dtype, jnp.floating):
    raise ConfigError(
      f'{field} is {config.schedule!r}, whose learning rate is {rate}; it must return a function from the step, an '
      'int32 scalar, to a number.'
    )
  return schedule
