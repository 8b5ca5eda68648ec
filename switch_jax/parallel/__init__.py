"""Where it is computed: the mesh, the logical axes, and shard-by-shard execution."""

from switch_jax.parallel.mesh import MESH_AXES, TOKEN_AXES, make_mesh, mesh_shape
from switch_jax.parallel.partitioning import LOGICAL_AXES, Layout, lift

__all__ = ['LOGICAL_AXES', 'MESH_AXES', 'TOKEN_AXES', 'Layout', 'lift', 'make_mesh', 'mesh_shape']
