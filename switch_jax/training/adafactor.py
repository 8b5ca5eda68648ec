"""Adafactor (Shazeer and Stern 2018) as T5's, for each matrix alone in a stack of experts or scanned layers.

`optax.adafactor` factors the two largest dimensions of a tensor and clips and scales it as a whole, which mixes
experts. Here the leading `layers` and `expert` axes only stack matrices: second moments are factored, the update is
clipped and the parameter's scale taken for each of them separately. No momentum.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from switch_jax.config import OptimizerConfig
from switch_jax.kernels import update as update_kernel

STACKING_AXES = ('layers', 'expert')

# (update, parameter, number of updates before it) to the new parameter.
InPlace = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_GRADIENT_EPSILON = 1e-30
_PARAMETER_EPSILON = 1e-3


@dataclasses.dataclass(frozen=True)
class Factoring:
  """How one parameter is treated.

  Attributes:
    stack_depth: leading axes that stack independent tensors.
    factored: whether second moments are kept as a row and a column.
    largest: the axis (-1 or -2) that the row statistics average away: the longer one, the last at a tie (T5X).
    of_experts: whether it is a stack of experts.
  """

  stack_depth: int
  factored: bool
  largest: int
  of_experts: bool = False


def factoring(shape: tuple[int, ...], names: tuple[str | None, ...], config: OptimizerConfig) -> Factoring:
  """Decides how a parameter is treated from its shape and logical axes.

  The router (an axis without a name) is never factored, other matrices when both sides are at least
  `min_dim_size_to_factor`, experts' always or by the same rule (`factor_experts`).
  """
  depth = sum(name in STACKING_AXES for name in names)
  sides = shape[depth:]
  is_matrix = len(sides) == 2 and None not in names
  always = 'expert' in names and config.factor_experts == 'always'
  factored = is_matrix and (always or min(sides) >= config.min_dim_size_to_factor)
  return Factoring(depth, factored, -2 if factored and sides[0] > sides[1] else -1, 'expert' in names)


def moment_axes(axes: tuple[Any, ...], how: Factoring) -> dict[str, tuple[Any, ...]]:
  """Returns of what is known of each axis of a parameter that which its second-moment arrays keep."""
  if not how.factored:
    return {'v': axes}
  other = -1 if how.largest == -2 else -2
  without = lambda axis: tuple(x for i, x in enumerate(axes) if i != len(axes) + axis)  # noqa: E731
  return {'v_row': without(how.largest), 'v_col': without(other)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdafactorState:
  """Second moments: for every parameter `{'v_row', 'v_col'}` or `{'v'}`, float32, and the number of updates."""

  count: jax.Array
  moments: Any


def _root_mean_square(x: jax.Array, stack_depth: int) -> jax.Array:
  """Returns the root mean square of each stacked tensor, with kept dimensions."""
  return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(stack_depth, x.ndim)), keepdims=True))


def _root_mean_squares(x: jax.Array, y: jax.Array, stack_depth: int) -> list[jax.Array]:
  """Returns `_root_mean_square` of two arrays of one shape, in one pass over both."""
  axes, zero = tuple(range(stack_depth, x.ndim)), jnp.zeros((), x.dtype)
  add = lambda a, b: (a[0] + b[0], a[1] + b[1])  # noqa: E731
  sums = jax.lax.reduce((jnp.square(x), jnp.square(y)), (zero, zero), add, axes)
  count = math.prod(x.shape[stack_depth:])
  return [jnp.expand_dims(jnp.sqrt(total / count), axes) for total in sums]


def scale_by_adafactor(
  config: OptimizerConfig, treatment: Any, in_place: InPlace | None = None, *, both_at_once: bool = False
) -> optax.GradientTransformation:
  """Returns the transformation of gradients into Adafactor's updates, before the learning rate.

  Args:
    config: decay 1 - t ** -decay_rate, clipping threshold, parameter scaling.
    treatment: tree of `Factoring`, one for each parameter.
    in_place: if given, the result is no update but the new parameters: what `in_place(update, parameter, count)` makes
      of each, after `count` updates. The matrices of a stack are then updated a few at a time, where they lie
      (`kernels.update`).
    both_at_once: take the scales of experts and of their update in one pass over both: a TPU has to read all of a large
      array for each sum. XLA:CPU makes a slow loop of two sums, and over parts the partitioner gathers each.
  """

  def init_one(how: Factoring, parameter: jax.Array) -> dict[str, jax.Array]:
    shape = parameter.shape
    if not how.factored:
      return {'v': jnp.zeros(shape, jnp.float32)}
    drop = lambda axis: shape[: len(shape) + axis] + shape[len(shape) + axis + 1 :]  # noqa: E731
    other = -1 if how.largest == -2 else -2
    return {'v_row': jnp.zeros(drop(how.largest), jnp.float32), 'v_col': jnp.zeros(drop(other), jnp.float32)}

  def update_one(how, gradient, moments, parameter, decay):
    squared = jnp.square(gradient) + _GRADIENT_EPSILON
    if how.factored:
      largest, other = how.largest, -1 if how.largest == -2 else -2
      row = decay * moments['v_row'] + (1 - decay) * jnp.mean(squared, axis=largest)
      column = decay * moments['v_col'] + (1 - decay) * jnp.mean(squared, axis=other)
      row_factor = jax.lax.rsqrt(row / jnp.mean(row, axis=-1, keepdims=True))
      update = gradient * jnp.expand_dims(row_factor, largest) * jnp.expand_dims(jax.lax.rsqrt(column), other)
      moments = {'v_row': row, 'v_col': column}
    else:
      v = decay * moments['v'] + (1 - decay) * squared
      update, moments = gradient * jax.lax.rsqrt(v), {'v': v}
    one_pass = both_at_once and how.of_experts and config.multiply_by_parameter_scale
    if one_pass:
      size, parameter_size = _root_mean_squares(update, parameter, how.stack_depth)
    else:
      size = _root_mean_square(update, how.stack_depth)
    scale = 1.0 / jnp.maximum(1.0, size / config.clip_threshold)
    if config.multiply_by_parameter_scale:
      if not one_pass:
        parameter_size = _root_mean_square(parameter, how.stack_depth)
      scale *= jnp.maximum(parameter_size, _PARAMETER_EPSILON)
    return update * scale, moments

  def replace_one(how, gradient, moments, parameter, decay, count):
    update, moments = update_one(how, gradient, moments, parameter, decay)
    return in_place(update, parameter, count), moments

  def replace_stack(how, gradient, moments, parameter, decay, count, first):
    if not (how.stack_depth and how.factored):
      return replace_one(how, gradient, moments, parameter, decay, count)
    stacked_once = dataclasses.replace(how, stack_depth=1)

    def some(gradient, kept):
      parameter, moments = kept
      return replace_one(stacked_once, gradient, moments, parameter, decay, count)

    return update_kernel.in_place(some, how.stack_depth, gradient, (parameter, moments), first)

  is_how = lambda x: isinstance(x, Factoring)  # noqa: E731

  def init(parameters):
    return AdafactorState(jnp.zeros((), jnp.int32), jax.tree.map(init_one, treatment, parameters, is_leaf=is_how))

  def update(gradients, state, parameters):
    decay = 1.0 - (state.count + 1).astype(jnp.float32) ** -config.decay_rate
    if in_place is None:
      step: Callable = lambda *leaves: update_one(*leaves, decay)  # noqa: E731
    else:
      first = update_kernel.first_turn(gradients)
      step = lambda *leaves: replace_stack(*leaves, decay, state.count, first)  # noqa: E731
    both = jax.tree.map(step, treatment, gradients, state.moments, parameters, is_leaf=is_how)
    updates = jax.tree.map(lambda _, pair: pair[0], treatment, both, is_leaf=is_how)
    moments = jax.tree.map(lambda _, pair: pair[1], treatment, both, is_leaf=is_how)
    return updates, AdafactorState(optax.safe_increment(state.count), moments)

  return optax.GradientTransformation(init, update)
