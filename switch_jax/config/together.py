"""Which runs can be trained together in one program. What a sweep groups and what training checks follow from here."""

from collections.abc import Mapping, Sequence
from typing import Any

from switch_jax.config.identity import flatten
from switch_jax.config.run import RunConfig
from switch_jax.config.validation import ConfigError

# By the names of `flatten`.
_MAY_DIFFER = ('random_seed', 'model_dir', 'initial_checkpoint_path', 'optimizer.learning_rate')


def settings_in_common(run: RunConfig) -> Mapping[str, Any] | None:
  """Returns the settings in which runs that are trained together must be equal, by dotted names.

  None for one that is trained alone, whatever the others are: with a teacher, or with trackers, of which a process has
  one run each.
  """
  if run.distillation or run.trackers:
    return None
  settings, optimizer = flatten(run.to_json()), run.optimizer
  for name in _MAY_DIFFER:
    # All schedules of ours are linear in the rate; how one of the user's, or an optimizer, takes it is not known.
    if name != 'optimizer.learning_rate' or not (':' in optimizer.schedule or ':' in optimizer.name):
      settings.pop(name)
  return settings


def check_together(runs: Sequence[RunConfig]) -> None:
  """Raises a `ConfigError` if these runs cannot be trained together, wherever that is and whatever their steps are."""
  first = runs[0]
  common = settings_in_common(first)
  for run in runs:
    own = settings_in_common(run)
    if own is None or common is None:
      alone = run if own is None else first
      raise ConfigError(
        f'{alone.model_dir} has RunConfig.{"distillation" if alone.distillation else "trackers"}, and such a run is '
        'trained alone: leave it out of those that are trained together.'
      )
    if names := sorted(name for name in common.keys() | own.keys() if common.get(name) != own.get(name)):
      raise ConfigError(
        f'{first.model_dir} and {run.model_dir} differ in {", ".join(names)}; runs that are trained together may '
        'differ in seed, learning rate (not that of an own schedule or optimizer), MODEL_DIR and initial checkpoint. '
        'Train those that differ in more apart.'
      )
  folders = [run.model_dir for run in runs]
  if twice := sorted({folder for folder in folders if folders.count(folder) > 1}):
    raise ConfigError(f'{twice[0]} is the MODEL_DIR of two runs that are trained together; give each its own.')
