"""Learning: optimizer, state, step, loop."""

from switch_jax.training.description import describe
from switch_jax.training.loop import train

__all__ = ['describe', 'train']
