"""Learning from a teacher (paper section 4.2): in every step, or from logits that were written once."""

from switch_jax.distillation.student import Distillation
from switch_jax.distillation.teacher_run import write_teacher_logits

__all__ = ['Distillation', 'write_teacher_logits']
