"""Which checkpoints a policy lets go."""

import math
from collections.abc import Mapping, Sequence

from switch_jax.config import CheckpointConfig

# Whatever a policy says, a run can go back to these: the last one may turn out to be of no use.
_ALWAYS_KEPT = 2


def steps_to_remove(steps: Sequence[int], config: CheckpointConfig, scores: Mapping[int, float]) -> list[int]:
  """Returns the steps that no rule of the policy keeps.

  Args:
    steps: complete checkpoints, in rising order.
    config: the policy.
    scores: `config.best_metric` of the steps that have been evaluated; what is no number does not compete.
  """
  if config.keep is None:
    return []
  kept = set(steps[-max(config.keep, _ALWAYS_KEPT) :])
  if config.keep_every:
    kept |= {step for step in steps if step % config.keep_every == 0}
  if config.keep_best:
    known = [step for step in steps if math.isfinite(scores.get(step, math.nan))]
    sign = 1 if config.best_is == 'lowest' else -1
    kept |= set(sorted(known, key=lambda step: (sign * scores[step], step))[: config.keep_best])
  return [step for step in steps if step not in kept]
