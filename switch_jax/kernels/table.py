"""Which form of each operation the devices of a layout get.

A row is a kind of device; the first that fits is taken. `MeshConfig.kernels` wins over it.
"""

import functools
from collections.abc import Mapping

from jax.sharding import AbstractMesh

from switch_jax.config import ConfigError
from switch_jax.config.mesh import KERNELS
from switch_jax.kernels import fused_attention, grouped_product
from switch_jax.parallel import Layout

# A TPU sorts, scatters and gathers scalars slowly, and multiplies fast. Parts of a joint projection it would copy out
# of it, and back into its gradient.
_TPU = {
  'attention': 'fused',
  'positions': 'products',
  'drop_free': 'grouped',
  'exchange': 'ragged',
  'update': 'sharded',
}

# (platform, beginning of the device's kind) to the forms that differ from the plain ones.
_TABLE: tuple[tuple[str, str, Mapping[str, str]], ...] = (
  # One row's scores stay in the cache; kernels' gradients are fast products; an optimizer that keeps to a few matrices
  # at a time copies nothing. `ragged_dot` is 12 times slower than a batched product on CPUs, and libtpu 0.0.42.1
  # cannot compile it at switch_base's size (32,768 rows, bfloat16: its own tiles overflow VMEM).
  (
    'cpu',
    '',
    {
      'attention': 'by_row',
      'projections': 'together',
      'dense_product': 'own_gradient',
      'expert_product': 'own_gradient',
      'positions': 'sorted',
      'drop_free': 'blocks',
      'update': 'in_place',
    },
  ),
  # libtpu 0.0.42.1 compiles a ragged all-to-all for v2 to tpu7x but not for a whole pod of v5e (16x16): its links
  # reach fewer neighbours.
  ('tpu', 'TPU v5 lite', _TPU | {'exchange': 'gathered'}),
  ('tpu', '', _TPU),
  # A sort's memory grows with tokens and not with tokens * experts.
  ('gpu', '', {'positions': 'sorted', 'drop_free': 'blocks'}),
)

_FOR_TPUS = (('attention', 'fused', 'kernel'), ('drop_free', 'grouped', 'kernel'), ('exchange', 'ragged', 'collective'))
_KERNELS = {'attention': fused_attention, 'drop_free': grouped_product}


@functools.cache
def forms(layout: Layout) -> Mapping[str, str]:
  """Returns the form of every operation of `config.mesh.KERNELS` on a layout's devices; plain ones without devices.

  Raises:
    ConfigError: a form was asked for that this layout cannot have.
  """
  chosen = {operation: next(iter(known)) for operation, known in KERNELS.items()}
  if isinstance(layout.mesh, AbstractMesh):
    return chosen
  device, one_device = layout.mesh.devices.flat[0], layout.mesh.size == 1
  for platform, kind, row in _TABLE:
    if device.platform == platform and device.device_kind.startswith(kind):
      chosen |= row
      break
  if chosen['update'] == 'in_place' and not one_device:
    chosen['update'] = 'plain'
  chosen |= dict(layout.kernels)
  for operation, form, what in _FOR_TPUS:
    interpreted = operation in _KERNELS and _KERNELS[operation].INTERPRET
    if chosen[operation] == form and device.platform != 'tpu' and not interpreted:
      others = ' or '.join(repr(other) for other in KERNELS[operation] if other != form)
      raise ConfigError(
        f'MeshConfig.kernels has {operation!r}: {form!r}, which is a {what} for TPUs, and the devices are '
        f'{device.platform}; use {others}, or leave it out.'
      )
  if chosen['update'] == 'in_place' and not one_device:
    raise ConfigError(
      f"MeshConfig.kernels has 'update': 'in_place', which would gather every stack of experts over the "
      f"{layout.mesh.size} devices; it is for one device. Use 'plain', or leave it out."
    )
  return chosen


def describe(layout: Layout) -> str:
  """Returns the forms in one line, as `--dry_run` prints them."""
  return ', '.join(f'{operation} {form}' for operation, form in forms(layout).items())
