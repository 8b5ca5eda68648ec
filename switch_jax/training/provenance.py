"""Which packages and devices a checkpoint was made with: numbers differ in their last bits from one to the other."""

from typing import Any

import jax

from switch_jax.parallel.agreement import versions


def provenance(devices: list[jax.Device]) -> dict[str, Any]:
  """Returns what a checkpoint's `config.json` says of where it was made.

  Args:
    devices: of the mesh.

  Returns:
    `device`: what JAX calls the first of them (`TPU v4`, `cpu`), and how exact its matrix products were asked to be if
    that is not JAX's own choice; `devices`, `processes`: how many; `packages`: their versions, those
    that hosts have to agree on.
  """
  precision = jax.config.jax_default_matmul_precision
  return {
    'device': devices[0].device_kind + (f' with matrix products of {precision} precision' if precision else ''),
    'devices': len(devices),
    'processes': len({device.process_index for device in devices}),
    'packages': versions(),
  }
