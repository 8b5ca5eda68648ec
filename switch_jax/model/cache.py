"""What a decoder keeps of earlier positions and of its examples, and attention of the newest position to it.

Keys and values are arguments and results, no state of Flax's. Each layer puts the newest position in its place before
it attends, never after: only then does a loop write into what it carries instead of a copy of it.

Axes: rows of the step, which are examples or several hypotheses (fan-out) of each; heads; length; kv.
"""

import dataclasses

import jax
import jax.numpy as jnp

Pair = tuple[jax.Array, jax.Array]

# By layer as in `Memory`, the keys and values of the rows so far, each `[rows, heads, length, kv]`.
Cache = dict[str, Pair]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
  """What a decoder knows of its examples; it stays as it is while they are decoded.

  Attributes:
    layers: by layer (`layers_0`), or by layer of a block with a leading axis of blocks where layers are scanned, the
      keys and values of attention to the encoder's output, each `[examples, heads, inputs length, kv]`.
    bias: float32 `[examples, 1, 1, inputs length]`, 0 for tokens and `MASKED` for padding.
  """

  layers: dict[str, Pair]
  bias: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepContext:
  """What the layers of a step share.

  Attributes:
    real: bool `[rows, 1]`: no row is padding.
    position: int32 scalar, the newest position.
    bias: float32 `[heads or 1, 1, length]`: the relative-position bias from the newest position, if there is one,
      `MASKED` after it.
    memory_bias: `Memory.bias`; None without an encoder.
  """

  real: jax.Array
  position: jax.Array
  bias: jax.Array
  memory_bias: jax.Array | None


def heads_first(y: jax.Array, num_heads: int) -> jax.Array:
  """Maps `[rows, length, heads * kv]` to `[rows, heads, length, kv]`."""
  return y.reshape(*y.shape[:-1], num_heads, -1).swapaxes(1, 2)


def heads_last(y: jax.Array) -> jax.Array:
  """Maps `[rows, heads, length, kv]` to `[rows, length, heads * kv]`."""
  y = y.swapaxes(1, 2)
  return y.reshape(*y.shape[:2], -1)


def attend_to_cache(query: jax.Array, new: Pair, kept: Pair, context: StepContext) -> tuple[jax.Array, Pair]:
  """Attention of the newest position to the row up to and including itself; the softmax is in float32.

  Args:
    query: `[rows, heads, 1, kv]`.
    new: key and value of the position, `[rows, heads, 1, kv]`.
    kept: keys and values `[rows, heads, length, kv]`.
    context: gives the position and its bias.

  Returns:
    `[rows, heads, 1, kv]` in the dtype of `query`, and what is kept with the position in it.
  """

  def put(old, y):
    return jax.lax.dynamic_update_slice_in_dim(old, y.astype(old.dtype), context.position, axis=2)

  kept = (put(kept[0], new[0]), put(kept[1], new[1]))
  return attend_to_memory(query, kept, context.bias), kept


def attend_to_memory(query: jax.Array, memory: Pair, bias: jax.Array) -> jax.Array:
  """Attention of queries `[n, heads, queries, kv]` to keys and values; the softmax is in float32."""
  key, value = memory
  scores = jnp.einsum('rhqk,rhsk->rhqs', query, key, preferred_element_type=jnp.float32) + bias
  weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
  return jnp.einsum('rhqs,rhsk->rhqk', weights, value)
