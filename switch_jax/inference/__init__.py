"""Using a model: logits, decoding, evaluation."""

from switch_jax.inference.logits import compute_logits

__all__ = ['compute_logits']
