"""The optimizer's update of a stack of matrices where it lies, for one CPU device.

Everything about a few matrices then stays in the caches and no array of updates is made. Elsewhere the plain form,
whole arrays at once (optax), is better; over a stack that is split over devices a loop would gather it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# (gradient, (parameter, whatever is kept for it)) of some stacked matrices to the new pair.
Update = Callable[[jax.Array, Any], Any]

# Of the matrices that are updated together. XLA:CPU gives an operation of one megabyte to one core and one of two
# megabytes to two; more than a core's cache holds would be read from memory again and again.
_GROUP_BYTES = 2 << 20


def first_turn(gradients: Any) -> jax.Array:
  """Returns 0, which XLA cannot know before all gradients are there.

  A loop that begins with it runs when nothing reads the old parameters any more, so XLA lets it write over them;
  otherwise it would copy every stack first (twice, in fact).
  """
  return (optax.tree.norm(gradients) < 0).astype(jnp.int32)


def in_place(update: Update, stack_depth: int, gradient: jax.Array, kept: Any, first: jax.Array) -> Any:
  """Updates the matrices of a stack, a few at a time, one group after the other.

  Args:
    update: of matrices that are stacked along one axis.
    stack_depth: leading axes that stack matrices.
    gradient: of the stack.
    kept: the parameter and whatever is kept for it, a pytree of arrays with the same leading axes.
    first: from `first_turn`.

  Returns:
    The new `kept`.
  """
  stack = gradient.shape[:stack_depth]
  together = group_size(math.prod(stack), gradient.nbytes // math.prod(stack))
  in_groups = lambda x: x.reshape(-1, together, *x.shape[stack_depth:])  # noqa: E731
  gradient, kept = jax.tree.map(in_groups, (gradient, kept))

  def body(i, kept):
    at = lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False)  # noqa: E731
    new = update(at(gradient), jax.tree.map(at, kept))
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 0), kept, new)

  kept = jax.lax.fori_loop(first, gradient.shape[0], body, kept)
  return jax.tree.map(lambda x: x.reshape(*stack, *x.shape[2:]), kept)


def group_size(matrices: int, matrix_bytes: int) -> int:
  """Returns how many of so many matrices are updated together: a divisor, as large as `_GROUP_BYTES` allow."""
  fitting = max(1, _GROUP_BYTES // matrix_bytes)
  return max(n for n in range(1, min(matrices, fitting) + 1) if matrices % n == 0)
