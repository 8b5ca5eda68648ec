"""How it learns: optimizer, state, step, loop, metrics."""

from switch_jax.training.description import describe
from switch_jax.training.loop import train
from switch_jax.training.teacher_run import write_teacher_logits

__all__ = ['describe', 'train', 'write_teacher_logits']
