"""Learning: optimizer, state, step, loop. `train` takes a `RunConfig` and gives a `TrainResult`, also in a notebook."""

from switch_jax.training.description import describe
from switch_jax.training.loop import TrainResult, finished_step, train
from switch_jax.training.together import train_together

__all__ = ['TrainResult', 'describe', 'finished_step', 'train', 'train_together']
