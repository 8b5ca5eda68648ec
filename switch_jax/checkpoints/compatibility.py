"""Whether a checkpoint fits the model and the run that would go on from it."""

import functools
import json
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from etils import epath

import switch_jax
from switch_jax.config import ConfigError, ModelConfig, RunConfig, unknown_fields
from switch_jax.folders.model_dir import ModelDir

_logger = logging.getLogger(__name__)


def check_shapes(path: epath.Path, saved: Any, wanted: Any, below: str = '') -> None:
  """Raises a `ConfigError` unless a checkpoint holds arrays of the same names and shapes.

  Args:
    path: of the checkpoint.
    saved: the tree in the checkpoint; anything with a `shape` may stand for an array.
    wanted: the tree of this configuration.
    below: the beginning of the names in the checkpoint that count.
  """
  saved, wanted = _shapes(saved), _shapes(wanted)
  saved = {name: shape for name, shape in saved.items() if name.startswith(below)}
  if has_two_routers(saved):
    raise two_routers(path)
  problems = [
    f'  {name}: {saved.get(name, "not")} in the checkpoint, {wanted.get(name, "not")} in this configuration'
    for name in sorted({*saved, *wanted}, key=lambda n: (not n.startswith('params/'), n))
    if saved.get(name) != wanted.get(name)
  ]
  if problems:
    more = [f'  and {len(problems) - 5} more'] if len(problems) > 5 else []
    raise ConfigError(
      '\n'.join([f'{path} does not fit this model:', *problems[:5], *more])
      + '\nUse the configuration that the checkpoint was made with (its config.json), or another checkpoint.'
    )


def has_two_routers(names: Iterable[str]) -> bool:
  """Whether parameters are of Switch attention as early versions had it; this version has one router, as the paper."""
  return any('/key_value/router/' in name for name in names)


def two_routers(path: Any) -> ConfigError:
  """Returns the error for a checkpoint with such parameters."""
  return ConfigError(
    f'{path} has two routers in Switch attention, one for the query and one for key and value, as early versions of '
    'switch_jax; this one has one for all of them, as the paper, and cannot compute that model. Use the version that '
    'wrote it, or train anew.'
  )


def check_settings(
  model_dir: epath.Path, step: int | None, saved: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
  """Raises a `ConfigError` that names every setting in which a run differs from its checkpoint, with both values.

  Args:
    model_dir: where both are.
    step: of the checkpoint; None for a run that was begun and has none yet.
    saved: the settings in its `config.json` or in `run.json`, one flat dictionary of dotted names.
    identity: those of the run.
  """
  # Through JSON, so that tuples and lists compare equal.
  given = json.loads(json.dumps(dict(identity)))
  names = sorted(
    name for name in {*saved, *given} if name not in saved or name not in given or _differ(saved, given, name)
  )
  if names:
    width = max(len(name) for name in names)
    where, which, anew = 'in the checkpoint', f'checkpoint of step {step}', ''
    if step is None:
      where, which = 'of the run that was begun there', 'begun there, without a checkpoint yet'
      anew = f', or remove {ModelDir(model_dir).begun} to start anew in this one'
    table = [f'  {n:<{width}}  {_value(saved, n)} {where}, {_value(given, n)} now' for n in names]
    raise ConfigError(
      '\n'.join([f'{model_dir} holds a run with other settings ({which}):', *table])
      + '\nA MODEL_DIR belongs to one model, optimizer, task, batch size, seed and corpus. '
      f'Change the settings back to continue it, or set another --gin.MODEL_DIR to start anew{anew}.'
    )


def check_version(path: epath.Path, record: Any) -> None:
  """Says what a `config.json` records that this version does not know, in one line, once.

  Args:
    path: of the file.
    record: what it holds.

  Raises:
    ConfigError: fields of the model are unknown, so what it computes is; or a section is no JSON object.
  """
  sections = {name: record[name] for name in ('model', 'run', 'identity') if record.get(name) is not None}
  for name, section in sections.items():
    if not isinstance(section, Mapping):
      raise ConfigError(
        f'{path} records {section!r} as its {name}, which must be a JSON object; use another checkpoint.'
      )
  version = str(record.get('version', 'of no version'))
  by_whom = f'was written by switch_jax {version}, this is {switch_jax.__version__}'
  if unknown := unknown_fields(ModelConfig, sections.get('model', {})):
    raise ConfigError(
      f'{path} {by_whom}, and records of its model what this version does not know: {", ".join(unknown)}. What the '
      'model computes may depend on it; use the version that wrote the checkpoint, or a newer one.'
    )
  settings = {'run': unknown_fields(RunConfig, sections.get('run', {}))}
  settings['identity'] = [
    name for name in sections.get('identity', {}) if name.startswith('model.') and _is_unknown(name)
  ]
  listed = ', '.join(f'{section}: {", ".join(names)}' for section, names in settings.items() if names)
  if listed or _parts(version) > _parts(switch_jax.__version__):
    newer = ', which is newer' if _parts(version) > _parts(switch_jax.__version__) else ''
    what = (
      f'settings that this version does not know are ignored ({listed})' if listed else 'all its settings are known'
    )
    _warn_once(f'{path} {by_whom.replace(version, version + newer, 1)}; {what}.')


def _is_unknown(name: str) -> bool:
  """Whether a dotted name of a run's identity, `model.moe.num_experts`, is no field of this version's."""
  fields: Any = None
  for part in reversed(name.split('.')):
    fields = {part: fields}
  return bool(unknown_fields(RunConfig, fields))


@functools.cache
def _warn_once(text: str) -> None:
  _logger.warning('%s', text)


def _parts(version: str) -> tuple[int, ...]:
  return tuple(int(number) for number in re.findall(r'\d+', version))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every leaf by its path, `params/encoder/layers_0/...`, whatever containers it lies in."""

  def name(key: Any) -> str:
    return str(next(getattr(key, a) for a in ('key', 'name', 'idx') if hasattr(key, a)))

  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {'/'.join(map(name, path)): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, 'shape')}


def _differ(a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> bool:
  # True == 1 in Python, but not in a configuration.
  return a[name] != b[name] or isinstance(a[name], bool) != isinstance(b[name], bool)


def _value(settings: Mapping[str, Any], name: str) -> str:
  return repr(settings[name]) if name in settings else 'not set'
