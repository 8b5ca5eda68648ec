"""Points of a sweep that one process trains in one program, those at the same step at a time."""

from collections.abc import Sequence

from switch_jax import training
from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import RunConfig
from switch_jax.monitoring.interruption import EXIT_CODES
from switch_jax.monitoring.loss_watch import DivergenceError

# Until the process ends, which then has not to wait for pipelines that are taken apart.
_kept: list[object] = []


def train_points(runs: Sequence[RunConfig], config_gins: Sequence[str]) -> tuple[list[str | None], int]:
  """Trains runs to their end; those that stand at different steps one group after the other.

  Args:
    runs: may be trained together.
    config_gins: the operative gin text of each.

  Returns:
    The error of each run that diverged, None for the others; and the exit status, which is a signal's if one came.

  Raises:
    ConfigError: something is wrong with one of them.
  """
  errors: list[str | None] = [None] * len(runs)
  groups: dict[int, list[int]] = {}
  for number, run in enumerate(runs):
    groups.setdefault(CheckpointStore(run.model_dir).latest_whole_step() or 0, []).append(number)
  for numbers in groups.values():
    results = training.train_together([runs[n] for n in numbers], [config_gins[n] for n in numbers], _kept)
    for number, result in zip(numbers, results, strict=True):
      if isinstance(result, DivergenceError):
        errors[number] = str(result)
      elif result.reason in EXIT_CODES:
        return errors, EXIT_CODES[result.reason]
      else:
        print(f'{runs[number].model_dir}: {result.reason}, step {result.step:,}', flush=True)
  return errors, 0
