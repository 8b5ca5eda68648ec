"""The device mesh `(data, expert, model)`.

Tokens are split over `data` and `expert`; experts are split over `expert` and replicated over `data`; the widths of
layers are split over `model`. Every parallel layout of the paper (Figure 9) is a mesh of this one shape.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from switch_jax.config import ConfigError, MeshConfig

MESH_AXES = ('data', 'expert', 'model')
TOKEN_AXES = ('data', 'expert')


def _divisors(n: int) -> list[int]:
  return [i for i in range(1, n + 1) if n % i == 0]


def mesh_shape(config: MeshConfig, num_devices: int, num_experts: int | None) -> tuple[int, int, int]:
  """Returns the sizes of the data, expert and model axes.

  Args:
    config: sizes asked for; at most one is -1, and `expert=None` is the largest divisor of the devices left by the
      other axes that divides `num_experts`.
    num_devices: devices in the mesh.
    num_experts: experts of a Switch layer; None for a dense model.

  Raises:
    ConfigError: the sizes do not multiply to the devices, or the experts do not divide over their axis.
  """
  data, expert, model = config.data, config.expert, config.model
  choices = ', '.join(map(str, _divisors(num_devices)))
  fixed = math.prod(size for size in (data, expert, model) if size is not None and size != -1)
  if num_devices % fixed:
    raise ConfigError(
      f'MeshConfig(data={data}, expert={expert}, model={model}) asks for a multiple of {fixed} devices and there are '
      f'{num_devices}; the sizes must multiply to {num_devices}. Each axis can be one of {choices}.'
    )
  left = num_devices // fixed
  if expert is None:
    # With data fixed nothing but the expert axis can take what is left; else data takes the rest.
    expert = math.gcd(left, num_experts or 1) if -1 in (data, model) else left
  if data == -1:
    data = num_devices // (expert * model)
  elif model == -1:
    model = num_devices // (data * expert)
  elif expert == -1:
    expert = num_devices // (data * model)
  if data * expert * model != num_devices:
    raise ConfigError(
      f'MeshConfig(data={data}, expert={expert}, model={model}) is {data * expert * model} devices and there are '
      f'{num_devices}; the sizes must multiply to {num_devices}. Set one of them to -1 for what is left.'
    )
  if num_experts and num_experts % expert:
    valid = ', '.join(str(d) for d in _divisors(num_devices) if num_experts % d == 0)
    raise ConfigError(
      f'MeshConfig.expert is {expert} and the model has {num_experts} experts; each device holds the same number of '
      f'experts. Use one of {valid}, or a number of experts that {expert} divides.'
    )
  return data, expert, model


def make_mesh(config: MeshConfig, num_experts: int | None, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns the mesh of a run over `devices` (by default all devices of all hosts)."""
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(config, len(devices), num_experts)
  # Auto: the compiler propagates shardings. jax.make_mesh would give Explicit axes, which Flax's metadata refuses.
  axis_types = (AxisType.Auto,) * len(MESH_AXES)
  if len(devices) == 1:
    return Mesh(np.asarray(devices).reshape(shape), MESH_AXES, axis_types=axis_types)
  return jax.make_mesh(shape, MESH_AXES, axis_types=axis_types, devices=devices)
