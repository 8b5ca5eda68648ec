"""The optimizer's update of a stack of matrices where it lies, for one CPU device.

Everything about one matrix then stays in the cache and no array of updates is made. Elsewhere the plain form, whole
arrays at once (optax), is better; over a stack that is split over devices a loop would gather it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# (gradient, (parameter, whatever is kept for it)) of one matrix to the new pair.
One = Callable[[jax.Array, Any], Any]


def first_turn(gradients: Any) -> jax.Array:
  """Returns 0, which XLA cannot know before all gradients are there.

  A loop that begins with it runs when nothing reads the old parameters any more, so XLA lets it write over them;
  otherwise it would copy every stack first (twice, in fact).
  """
  return (optax.tree.norm(gradients) < 0).astype(jnp.int32)


def in_place(one: One, stack_depth: int, gradient: jax.Array, kept: Any, first: jax.Array) -> Any:
  """Updates the matrices of a stack one after the other.

  Args:
    one: updates a matrix.
    stack_depth: leading axes that stack matrices.
    gradient: of the stack.
    kept: the parameter and whatever is kept for it, a pytree of arrays with the same leading axes.
    first: from `first_turn`.

  Returns:
    The new `kept`.
  """
  stack = gradient.shape[:stack_depth]
  gradient, kept = jax.tree.map(lambda x: x.reshape(-1, *x.shape[stack_depth:]), (gradient, kept))

  def body(i, kept):
    at = lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False)  # noqa: E731
    new = one(at(gradient), jax.tree.map(at, kept))
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 0), kept, new)

  kept = jax.lax.fori_loop(first, gradient.shape[0], body, kept)
  return jax.tree.map(lambda x: x.reshape(*stack, *x.shape[1:]), kept)
