"""Learning: optimizer, state, step, loop. `train` takes a `RunConfig` and gives a `TrainResult`, also in a notebook."""

from switch_jax.training.description import describe
from switch_jax.training.loop import TrainResult, finished_step, train

__all__ = ['TrainResult', 'describe', 'finished_step', 'train']
