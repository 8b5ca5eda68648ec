"""What a student begins with: a teacher's weights outside experts and routers, matched by name and shape.

The paper initialises a dense student with all non-expert weights of its teacher (section 4.2). What has experts in the
teacher has no counterpart in the student and begins anew.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from switch_jax.config import INHERITED_KINDS, ConfigError, ModelConfig
from switch_jax.interop.initial import stored_parameters
from switch_jax.interop.scanned import scanned_rows
from switch_jax.interop.stored import StoredArray
from switch_jax.model import parameter_shapes

_SETTING = 'DistillationConfig.teacher_path'


@dataclasses.dataclass(frozen=True)
class Inheritance:
  """Which parameters of a student come from its teacher, layers one by one, by T5X name.

  Attributes:
    taken: those that do.
    new: those that begin anew, each with the reason.
  """

  taken: tuple[str, ...]
  new: Mapping[str, str]

  def describe(self) -> list[str]:
    """Returns it in a few lines: taken ones by kind, new ones by name and reason, layers together."""
    lines = ['from the teacher:']
    for kind in INHERITED_KINDS:
      names = [name for name in self.taken if kind_of(name) == kind]
      if names:
        lines.append(f'  {kind}: {_fold(names)}')
    if len(lines) == 1:
      lines = ['from the teacher: nothing']
    if self.new:
      lines.append('new:')
      reasons = collections.defaultdict(list)
      for name, reason in self.new.items():
        reasons[reason].append(name)
      lines += [f'  {_fold(names)} ({reason})' for reason, names in reasons.items()]
    return lines


def kind_of(name: str) -> str | None:
  """Returns which kind of `DistillationConfig.initialize` a parameter is; None for experts and routers."""
  parts = name.split('/')
  if 'expert' in parts or 'router' in parts:
    return None
  if parts[-1] == 'embedding' or 'logits_dense' in parts:
    return 'embedding'
  if parts[-1] == 'scale':
    return 'layer_norm'
  return 'mlp' if {'mlp', 'extra_mlp'} & set(parts) else 'attention'


def find_inheritance(path: str, kinds: Sequence[str], student: ModelConfig) -> Inheritance:
  """Returns what a student takes from a teacher. Reads no array.

  Args:
    path: the teacher's checkpoint, of any format.
    kinds: of `DistillationConfig.initialize`.
    student: its configuration.

  Raises:
    ConfigError: the teacher has nothing that the student could take, or cannot be opened.
  """
  shapes = {name: array.shape for name, array in stored_parameters(path, _SETTING).items()}
  taken, new = [], {}
  for name, shape in parameter_shapes(student).items():
    reason = _why_new(name, shape, shapes, kinds)
    if reason:
      new[name] = reason
    else:
      taken.append(name)
  if kinds and not taken:
    shown = '; '.join(f'{name}: {reason}' for name, reason in list(new.items())[:3])
    raise ConfigError(
      f'DistillationConfig.initialize is {tuple(kinds)!r}, and {path} has nothing to initialise the student with '
      f'({shown}). Give the student the widths and layers of its teacher, or set --gin.INITIALIZE="()".'
    )
  return Inheritance(tuple(taken), new)


def _why_new(name: str, shape: tuple[int, ...], teacher: Mapping[str, tuple[int, ...]], kinds: Sequence[str]) -> str:
  """Returns why a parameter of the student begins anew; the empty string if it does not."""
  kind = kind_of(name)
  if kind is None:
    return "experts and routers are the student's own"
  if kind not in kinds:
    return 'not asked for'
  if name not in teacher:
    part = re.match(r'.*/(mlp|attention|self_attention)/', name)
    with_experts = part and any(other.startswith(part[0]) and '/expert/' in other for other in teacher)
    return 'the teacher has experts there' if with_experts else 'the teacher has none'
  return '' if teacher[name] == shape else f'{shape} here, {teacher[name]} in the teacher'


def inherit(path: str, inheritance: Inheritance, student: ModelConfig, params: Any) -> Any:
  """Returns a student's new parameters with those of its teacher in their places.

  Args:
    path: the teacher's checkpoint, of any format. Each host reads what its devices hold of the parameters taken.
    inheritance: which ones.
    student: its configuration.
    params: its new parameters on the mesh, a nested dict of arrays, stacked by block if `scan_layers`.
  """
  arrays = stored_parameters(path, _SETTING)
  sources = {name: arrays[name] for name in inheritance.taken}

  def one(leaf_path, leaf):
    name = '/'.join(key.key for key in leaf_path)
    rows = scanned_rows(name, student) if student.scan_layers else None
    return _replaced(leaf, [sources.get(row) for row in rows or [name]], stacked=rows is not None)

  return jax.tree_util.tree_map_with_path(one, params)


def _replaced(leaf: jax.Array, sources: Sequence[StoredArray | None], stacked: bool) -> jax.Array:
  """Returns an array with the rows that have a source replaced by it; `stacked` says that there are rows at all."""
  if not any(sources):
    return leaf
  if not stacked:
    read = lambda index: sources[0].read(index).astype(leaf.dtype, copy=False)  # noqa: E731
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, read)
  boxes = {str(shard.index): shard.data for shard in leaf.addressable_shards}

  def read_rows(index):
    box = np.array(boxes[str(index)])
    for place, row in enumerate(range(len(sources))[index[0]]):
      if sources[row] is not None:
        box[place] = sources[row].read(index[1:])
    return box

  return jax.make_array_from_callback(leaf.shape, leaf.sharding, read_rows)


def _fold(names: Sequence[str]) -> str:
  """Returns names in few words: those that differ in the layer or in the matrix stand together."""
  for pattern in (r'(.*/layers_)(\d+)(/.*)', r'(.*/)([^/]+)(/kernel)'):
    groups: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for name in names:
      match = re.fullmatch(pattern, name)
      groups[(match[1], match[3]) if match else (name, '')].append(match[2] if match else '')
    names = [
      before + ('{' + ','.join(which) + '}' if len(which) > 1 else which[0]) + after
      for (before, after), which in groups.items()
    ]
  return ', '.join(names)
