"""A teacher's distributions over the next token, and the student's loss against them. Pure functions.

A distribution is kept whole, or as its likeliest tokens and one class for all others, which has the probability that is
left. The loss is the same formula for both: the cross-entropy over the classes.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftTargets:
  """The teacher's distribution at each target position, at some temperature.

  Attributes:
    log_probabilities: float32 `[batch, length, k]`.
    ids: int32 `[batch, length, k]`, the tokens they are of; None for all tokens of the vocabulary in their order.
  """

  log_probabilities: jax.Array
  ids: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftSums:
  """Sums over the target tokens with weight, float32 scalars.

  Attributes:
    cross_entropy: of the student's distribution with the teacher's, in nats, at the temperature; without its square.
    divergence: the same less the teacher's own entropy: 0 where the two agree.
  """

  cross_entropy: jax.Array
  divergence: jax.Array


def soft_targets(logits: jax.Array, temperature: float, top_k: int | None = None) -> SoftTargets:
  """Returns a teacher's distributions.

  Args:
    logits: float32 `[batch, length, vocab]`.
    temperature: the logits are divided by it.
    top_k: keep the k likeliest tokens, in falling order; None or the whole vocabulary keeps all in their order.
  """
  log_probabilities = jax.nn.log_softmax(logits / temperature, axis=-1)
  if top_k is None or top_k >= logits.shape[-1]:
    return SoftTargets(log_probabilities)
  return SoftTargets(*jax.lax.top_k(log_probabilities, top_k))


def soft_sums(logits: jax.Array, targets: SoftTargets, weights: jax.Array, temperature: float) -> SoftSums:
  """Returns the sums of a student's loss against a teacher.

  Args:
    logits: the student's, float32 `[batch, length, vocab]`.
    targets: the teacher's, at the same temperature.
    weights: `[batch, length]`, 0 where there is no target.
    temperature: the student's logits are divided by it.
  """
  logits, weights = logits / temperature, weights.astype(jnp.float32)
  student = jax.nn.log_softmax(logits, axis=-1)
  teacher = targets.log_probabilities
  if targets.ids is not None:
    student, teacher = _with_rest(logits, student, targets)
  probabilities = jnp.exp(teacher)
  # A class of probability 0 adds nothing, however small the student's is.
  zero = probabilities == 0
  cross_entropy = -jnp.sum(jnp.where(zero, 0.0, probabilities * jnp.where(zero, 0.0, student)), axis=-1)
  entropy = -jnp.sum(jnp.where(zero, 0.0, probabilities * jnp.where(zero, 0.0, teacher)), axis=-1)
  return SoftSums(jnp.sum(weights * cross_entropy), jnp.sum(weights * (cross_entropy - entropy)))


def _with_rest(logits: jax.Array, student: jax.Array, targets: SoftTargets) -> tuple[jax.Array, jax.Array]:
  """Returns both log distributions `[batch, length, k + 1]` over the kept tokens and the class of all others."""
  kept = jnp.exp(targets.log_probabilities)
  rest = jnp.log(jnp.maximum(1.0 - jnp.sum(kept, axis=-1, keepdims=True), 0.0))
  teacher = jnp.concatenate([targets.log_probabilities, rest], axis=-1)
  batch, length, _ = logits.shape
  rows, columns = jnp.arange(batch)[:, None, None], jnp.arange(length)[None, :, None]
  is_kept = jnp.zeros(logits.shape, bool).at[rows, columns, targets.ids].set(True)
  all_kept = jnp.all(is_kept, axis=-1, keepdims=True)
  # Where every token is kept the class is empty: any finite number will do, since the teacher gives it nothing.
  others = jax.nn.logsumexp(student, axis=-1, keepdims=True, where=~is_kept | all_kept)
  return jnp.concatenate([jnp.take_along_axis(student, targets.ids, axis=-1), others], axis=-1), teacher
