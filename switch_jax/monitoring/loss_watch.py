"""Ends a run whose loss is no number or has left for good, and says where it began."""

import collections
import math

from switch_jax.config import ConfigError, HealthConfig


class DivergenceError(ConfigError):
  """Training makes no sense any more.

  Attributes:
    began: the first step that shows it; states saved before it are good.
  """

  def __init__(self, message: str, began: int):
    super().__init__(message)
    self.began = began


class LossWatch:
  """Looks at loss and gradient norm of every step in turn.

  The loss has diverged when its mean over `window` steps is above `divergence_factor` times the lowest such mean before
  and one nat: a small loss may grow by as much, and no loss that is near its beginning is ever meant.
  """

  def __init__(self, config: HealthConfig):
    self._config = config
    self._recent: collections.deque[float] = collections.deque(maxlen=config.window)
    self._lowest, self._lowest_step = math.inf, 0
    self._first_above: int | None = None

  def check(self, step: int, loss: float, grad_norm: float) -> None:
    """Takes the numbers of a step.

    Raises:
      DivergenceError: it is not worth going on.
    """
    for name, value in (('loss', loss), ('gradient norm', grad_norm)):
      if not math.isfinite(value):
        raise DivergenceError(f'the {name} of step {step:,} is {value}; it was finite in every step before.', step)
    self._recent.append(loss)
    if self._config.divergence_factor is None:
      return
    limit = self._config.divergence_factor * self._lowest + 1.0
    if loss <= limit:
      self._first_above = None
    elif self._first_above is None:
      self._first_above = step
    if len(self._recent) < self._config.window:
      return
    mean = sum(self._recent) / len(self._recent)
    if mean < self._lowest:
      self._lowest, self._lowest_step = mean, step
    elif mean > limit:
      began = self._first_above or step
      raise DivergenceError(
        f'the loss has diverged: its mean over the last {self._config.window} steps is {mean:.3f} at step {step:,} and '
        f'was {self._lowest:.3f} at step {self._lowest_step:,}; it began at step {began:,}.',
        began,
      )
