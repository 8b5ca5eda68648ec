"""Rotary positions (Su et al. 2021): queries and keys are turned, so that their products know only their distance."""

import jax
import jax.numpy as jnp


def rotate(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
  """Turns every pair (i, i + width / 2) of a head's entries by the angle position / base ** (2 i / width).

  The halves of a head are paired as in Llama and in Hugging Face's models, not neighbours as in the paper.

  Args:
    x: queries or keys `[..., kv]`, kv even.
    positions: int32, of a shape that broadcasts to `x` without its last axis.
    base: the wavelengths are from 2 pi to 2 pi * base positions.

  Returns:
    The shape and dtype of `x`; computed in float32.
  """
  half = x.shape[-1] // 2
  angles = positions[..., None].astype(jnp.float32) * base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  sine, cosine = jnp.sin(angles), jnp.cos(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
  return turned.astype(x.dtype)
