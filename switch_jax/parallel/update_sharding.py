"""Where parameters are kept and updated that all shards of tokens use: each shard has its own part (ZeRO-1).

Otherwise every shard would hold the same parameters and optimizer state and make the same update. Here gradients are
summed straight into parts, each shard updates its part in float32, and once a step the parts are gathered for the
layers, in the dtype that these use (Rajbhandari et al. 2020; Xu et al. 2020, "Automatic Cross-Replica Sharding of
Weight Update in Data-Parallel Training").
"""

import math
from collections.abc import Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

from switch_jax.config.mesh import as_tuple
from switch_jax.parallel.partitioning import Layout

# Elements of a parameter on a device from which on it is split: gathering a smaller one costs more than it saves.
SMALLEST_SPLIT = 2**16


def split_over_tokens(
  layout: Layout, parameter: jax.ShapeDtypeStruct, names: Sequence[str | None]
) -> jax.ShapeDtypeStruct:
  """Returns a parameter as it is kept: split further, over the token axes along which it would be the same.

  Args:
    layout: where the parameter lies by the rules.
    parameter: its shape, dtype and sharding by the rules.
    names: its logical axes.

  Returns:
    The first of its axes that all these token axes divide takes them (a matrix is gathered faster by rows), failing
    that, the most that one axis can take. Small ones and experts, whose tokens come to them, stay as they are.
  """
  entries = [as_tuple(axes) for axes in layout.spec(*names)]
  shards = [math.prod(layout.size(axis) for axis in axes) for axes in entries]
  idle = tuple(axis for axis in layout.token_axes if all(axis not in axes for axes in entries))
  if not idle or 'expert' in names or math.prod(parameter.shape) // math.prod(shards) < SMALLEST_SPLIT:
    return parameter
  choices = sorted({idle, *((axis,) for axis in idle)}, key=lambda axes: -math.prod(map(layout.size, axes)))
  for axes in choices:
    over = math.prod(map(layout.size, axes))
    for i, size in enumerate(parameter.shape):
      if size % (shards[i] * over) == 0:
        entries[i] = (*entries[i], *axes)
        sharding = NamedSharding(layout.mesh, PartitionSpec(*(axes or None for axes in entries)))
        return jax.ShapeDtypeStruct(parameter.shape, parameter.dtype, sharding=sharding)
  return parameter
