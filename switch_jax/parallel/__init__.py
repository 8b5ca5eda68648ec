"""Where it is computed: the mesh, the logical axes, and shard-by-shard execution."""

from switch_jax.config.mesh import LOGICAL_AXES, MESH_AXES, TOKEN_AXES
from switch_jax.parallel.mesh import make_mesh, mesh_shape
from switch_jax.parallel.partitioning import Layout, lift

__all__ = ['LOGICAL_AXES', 'MESH_AXES', 'TOKEN_AXES', 'Layout', 'lift', 'make_mesh', 'mesh_shape']
