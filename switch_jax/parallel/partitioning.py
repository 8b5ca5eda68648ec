"""Logical axes, the table that maps them to mesh axes, and how functions are run shard by shard.

A layer names the axes of its arrays; a table of rules says on which mesh axes they lie. An unknown name, or two
logical axes of one array on the same mesh axis, is an error: Flax's own rules would replicate silently.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from switch_jax.config import ConfigError, MeshConfig, suggest
from switch_jax.config.mesh import DEFAULT_RULES, MESH_AXES, TOKEN_AXES, MeshAxes, as_tuple, check_rules


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh and the rules by which arrays lie on it: all that the model knows of the machine.

  Attributes:
    mesh: a mesh with the axes `(data, expert, model)`; an abstract one is for tracing only.
    rules: mesh axes of each logical axis, as `(name, axes)` pairs; missing names take `DEFAULT_RULES`.
    kernels: forms of operations, as `(operation, form)` pairs; missing ones follow from the devices
      (`switch_jax.kernels.forms`).
  """

  mesh: Mesh | AbstractMesh
  rules: tuple[tuple[str, MeshAxes], ...] = ()
  kernels: tuple[tuple[str, str], ...] = ()

  def __post_init__(self) -> None:
    check_rules(dict(self.rules))

  @classmethod
  def of(cls, config: MeshConfig, mesh: Mesh) -> 'Layout':
    """Returns the layout of a configuration over a mesh that was made of it."""
    return cls(mesh, tuple(config.rules.items()), tuple(config.kernels.items()))

  @classmethod
  def single_device(cls) -> 'Layout':
    """Returns the layout of one device, for notebooks and tests."""
    axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return cls(jax.make_mesh((1, 1, 1), MESH_AXES, axis_types=axis_types, devices=jax.devices()[:1]))

  @classmethod
  def without_devices(cls, shape: tuple[int, int, int] = (1, 1, 1)) -> 'Layout':
    """Returns a layout to trace shapes and to count with, where the machine's accelerators must not be taken."""
    axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return cls(AbstractMesh(shape, MESH_AXES, axis_types=axis_types))

  def size(self, axis: str) -> int:
    """Returns the number of devices along a mesh axis."""
    return self.mesh.shape[axis]

  @property
  def num_token_shards(self) -> int:
    """The number of shards the rows of a batch are split into."""
    return self.size('data') * self.size('expert')

  @property
  def token_axes(self) -> tuple[str, ...]:
    """The mesh axes of more than one device over which tokens are split; without any, nothing runs by shards."""
    return tuple(axis for axis in TOKEN_AXES if self.size(axis) > 1)

  @property
  def expert_axes(self) -> tuple[str, ...]:
    """The token axes over which experts are split; their tokens are exchanged over these."""
    split = as_tuple({**DEFAULT_RULES, **dict(self.rules)}['expert'])
    return tuple(axis for axis in split if self.size(axis) > 1)

  @property
  def replica_axes(self) -> tuple[str, ...]:
    """The other token axes: each position on them has a replica of the experts."""
    return tuple(axis for axis in self.token_axes if axis not in self.expert_axes)

  @property
  def num_expert_shards(self) -> int:
    """The number of shards the experts are split into."""
    return math.prod(self.size(axis) for axis in self.expert_axes)

  @property
  def model_axes(self) -> tuple[str, ...]:
    """The mesh axis over which widths are split, if it has more than one device."""
    return ('model',) if self.size('model') > 1 else ()

  @property
  def exchanged_width_axes(self) -> tuple[str, ...]:
    """The mesh axis over which the width of tokens is split while they are exchanged, if there is an exchange."""
    return self.model_axes if self.num_expert_shards > 1 else ()

  def spec(self, *names: str | None) -> PartitionSpec:
    """Returns the partition of an array whose axes have these logical names (None: not split on purpose).

    Raises:
      ConfigError: a name is unknown, or two axes of the array would lie on one mesh axis.
    """
    table = {**DEFAULT_RULES, **dict(self.rules)}
    entries: list[MeshAxes] = []
    owner: dict[str, str | None] = {}
    for name in names:
      if name is not None and name not in table:
        raise ConfigError(f'{name!r} is not a logical axis; known are {", ".join(table)}.{suggest(name, table)}')
      axes = table[name] if name is not None else None
      for axis in as_tuple(axes):
        if axis in owner:
          raise ConfigError(
            f'the axes {names} put both {owner[axis]!r} and {name!r} on the mesh axis {axis!r}; '
            'one mesh axis can split only one axis of an array. Change one of the two layout rules.'
          )
        owner[axis] = name
      entries.append(axes)
    return PartitionSpec(*entries)

  def splits(self, name: str) -> bool:
    """Whether a logical axis is split over more than one device."""
    return self.shards(name) > 1

  def shards(self, name: str) -> int:
    """Returns over how many devices a logical axis is split."""
    return math.prod(self.size(axis) for axis in as_tuple(self.spec(name)[0]))

  def sharding(self, *names: str | None) -> NamedSharding:
    """Returns the sharding of an array whose axes have these logical names."""
    return NamedSharding(self.mesh, self.spec(*names))

  def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
    """Tells the compiler how an activation lies on the mesh."""
    return jax.lax.with_sharding_constraint(x, self.sharding(*names))

  def per_token_shard(
    self, function: Callable[..., Any], in_specs: Any, out_specs: Any, *, by_width: bool = False
  ) -> Callable[..., Any]:
    """Returns `function` run by every (data, expert) shard on its own rows.

    Args:
      function: sees the local block of every argument.
      in_specs, out_specs: partitions, as for `jax.shard_map`, over `token_axes` and, if `by_width`, `model_axes`.
      by_width: every device of the model axis runs it too, on its part of what the partitions split; otherwise that
        axis stays automatic.
    """
    manual = self.token_axes + (self.model_axes if by_width else ())
    if not manual:
      return function
    # All axes: where one is left, even of one device, XLA:CPU aborts on bfloat16 reductions over the others, and no
    # kernel for TPUs can be inside.
    axes = MESH_AXES if by_width else manual
    return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, axis_names=frozenset(axes))

  def batch_sharding(self) -> NamedSharding:
    """Returns how the rows of a batch `[batch, length]` lie on the mesh: whole, also where their embeddings do not."""
    return self.sharding('batch', None)

  def replicated(self) -> NamedSharding:
    """Returns the sharding of a value that every device holds."""
    return NamedSharding(self.mesh, PartitionSpec())


def lift(x: jax.Array, axes: Sequence[str]) -> jax.Array:
  """Marks a value that is equal on all shards along `axes` as free to differ, so that its gradient is summed there.

  Parameters enter a shard in float32 and are lifted before they are cast: the gradient is then reduced in float32,
  as selective precision wants, and XLA:CPU is spared a bfloat16 all-reduce, which aborts it.
  """
  return jax.lax.pcast(x, tuple(axes), to='varying') if axes else x
