"""The device mesh `(data, expert, model)`.

Tokens are split over `data` and `expert`; experts are split over `expert` and replicated over `data`; the widths of
layers are split over `model`. Every parallel layout of the paper (Figure 9) is a mesh of this one shape.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from switch_jax.config import ConfigError, MeshConfig
from switch_jax.config.mesh import DEFAULT_RULES, LOGICAL_AXES, MESH_AXES, TOKEN_AXES, as_tuple

Widths = Mapping[str, Sequence[int]]
Shape = tuple[int, int, int]


def _divisors(n: int) -> list[int]:
  return [i for i in range(1, n + 1) if n % i == 0]


def _in_words(config: MeshConfig) -> str:
  slices = f', num_slices={config.num_slices}' if config.num_slices > 1 else ''
  return f'MeshConfig(data={config.data}, expert={config.expert}, model={config.model}{slices})'


def _fill(config: MeshConfig, expert: int, num_devices: int) -> Shape:
  """Returns the sizes with a given expert axis and -1 replaced by what is left, which may be nothing."""
  data, model = config.data, config.model
  if data == -1:
    data = num_devices // (expert * model)
  elif model == -1:
    model = num_devices // (data * expert)
  elif expert == -1:
    expert = num_devices // (data * model)
  return data, expert, model


def _misfits(
  config: MeshConfig, shape: Shape, num_experts: int | None, widths: Widths
) -> Iterator[tuple[str, int, int]]:
  """Yields `(logical axis, its size, shards)` for every axis of a parameter that its shards do not divide."""
  sizes = dict(zip(MESH_AXES, shape, strict=True))
  for name, axes in {**DEFAULT_RULES, **config.rules}.items():
    shards = math.prod(sizes[axis] for axis in as_tuple(axes))
    for width in ([num_experts] if num_experts else []) if name == 'expert' else widths.get(name, ()):
      if width % shards:
        yield name, width, shards


def mesh_shape(config: MeshConfig, num_devices: int, num_experts: int | None, widths: Widths | None = None) -> Shape:
  """Returns the sizes of the data, expert and model axes.

  Args:
    config: sizes asked for; at most one is -1, and `expert=None` is the largest divisor of the devices left by the
      other axes that divides `num_experts` and the `widths` that lie on the token axes.
    num_devices: devices in the mesh, of all slices.
    num_experts: experts of a Switch layer; None for a dense model.
    widths: sizes that the parameters have along logical axes; they must divide over the axes that the rules name.

  Raises:
    ConfigError: the sizes do not multiply to the devices, or something does not divide over its axes.
  """
  widths = widths or {}
  choices = ', '.join(map(str, _divisors(num_devices)))
  asked = [size for size in (config.data, config.expert, config.model) if size is not None and size != -1]
  fixed = math.prod(asked) if config.data != -1 else math.prod(asked) * config.num_slices
  if num_devices % fixed:
    raise ConfigError(
      f'{_in_words(config)} asks for a multiple of {fixed} devices and there are {num_devices}; the sizes must '
      f'multiply to {num_devices}. Each axis can be one of {choices}.'
    )
  left = num_devices // fixed
  if config.expert is not None:
    shape = _fill(config, config.expert, num_devices)
  elif -1 not in (config.data, config.model):
    shape = _fill(config, left, num_devices)  # Nothing but the expert axis can take what is left.
  else:
    shape = _largest_expert_axis(config, num_devices, left, num_experts, widths)
  data, expert, model = shape
  if data * expert * model != num_devices:
    raise ConfigError(
      f'MeshConfig(data={data}, expert={expert}, model={model}) is {data * expert * model} devices and there are '
      f'{num_devices}; the sizes must multiply to {num_devices}. Set one of them to -1 for what is left.'
    )
  for name, width, shards in _misfits(config, shape, num_experts, widths):
    raise ConfigError(_misfit_in_words(config, shape, name, width, shards))
  return shape


def _largest_expert_axis(
  config: MeshConfig, num_devices: int, left: int, num_experts: int | None, widths: Widths
) -> Shape:
  """Returns the shape with the largest expert axis over which everything divides."""
  table = {**DEFAULT_RULES, **config.rules}
  on_tokens = {name: sizes for name, sizes in widths.items() if set(as_tuple(table[name])) & set(TOKEN_AXES)}
  for expert in reversed(_divisors(left)):
    # A dense model has no use for the axis, unless the rules put something else on it.
    if not num_experts and not on_tokens and expert > 1:
      continue
    shape = _fill(config, expert, num_devices)
    if not list(_misfits(config, shape, num_experts, on_tokens)):
      return shape
  return _fill(config, 1, num_devices)  # The caller says what does not divide.


def _misfit_in_words(config: MeshConfig, shape: Shape, name: str, width: int, shards: int) -> str:
  num_devices = math.prod(shape)
  axes = as_tuple({**DEFAULT_RULES, **config.rules}[name])
  valid = ', '.join(str(d) for d in _divisors(num_devices) if width % d == 0)
  if name == 'expert' and axes == ('expert',):
    return (
      f'MeshConfig.expert is {shards} and the model has {width} experts; each device holds the same number of '
      f'experts. Use one of {valid}, or a number of experts that {shards} divides.'
    )
  sizes = f'data={shape[0]}, expert={shape[1]}, model={shape[2]}'
  remedy = "or the rule 'expert': 'expert' for replicas over data" if name == 'expert' else 'or another layout rule'
  return (
    f'the mesh {sizes} splits {name!r} ({LOGICAL_AXES[name]}) over {" x ".join(axes)} = {shards} devices, which do not '
    f'divide its {width}; {" x ".join(axes)} can be {valid}: set MeshConfig.{axes[-1]} accordingly, {remedy}.'
  )


def make_mesh(
  config: MeshConfig,
  num_experts: int | None,
  devices: Sequence[jax.Device] | None = None,
  widths: Widths | None = None,
) -> Mesh:
  """Returns the mesh of a run over `devices` (by default all devices of all hosts).

  Neighbours on an axis are neighbours in the machine where that can be. With several slices the data axis goes across
  them, slice by slice, and the other axes stay inside one (as `mesh_utils.create_hybrid_device_mesh` does, which does
  not know emulated devices).

  Raises:
    ConfigError: as `mesh_shape`; or the devices are not in `num_slices` slices.
  """
  devices = list(jax.devices() if devices is None else devices)
  data, expert, model = mesh_shape(config, len(devices), num_experts, widths)
  slices = _slices(config.num_slices, devices)
  within = (data // config.num_slices, expert, model)
  blocks = [_arrange(within, block) for block in slices]
  # Auto: the compiler propagates shardings. Explicit axes, the default of jax.make_mesh, Flax's metadata refuses.
  return Mesh(np.concatenate(blocks), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _slices(num_slices: int, devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
  """Returns the devices of each slice; those that know no slices (emulated ones) in equal runs."""
  if devices[0].platform != 'tpu':
    size = len(devices) // num_slices
    return [list(devices[i * size : (i + 1) * size]) for i in range(num_slices)]
  found: dict[int, list[jax.Device]] = {}
  for device in devices:
    found.setdefault(getattr(device, 'slice_index', 0), []).append(device)
  if len(found) != num_slices:
    raise ConfigError(
      f'MeshConfig.num_slices is {num_slices} and the {len(devices)} devices are in {len(found)} slices; set '
      f'MeshConfig.num_slices={len(found)}.'
    )
  return [found[index] for index in sorted(found)]


def _arrange(shape: Shape, devices: list[jax.Device]) -> np.ndarray:
  if devices[0].platform != 'tpu' or len(devices) == 1:
    return np.asarray(devices).reshape(shape)
  # Splitting a physical axis costs some neighbourhood, and refusing the user's sizes would cost more.
  return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
