"""Rows sorted by expert times the matrices of their experts, in one Pallas kernel for TPUs.

The rows come in blocks of one expert each, as `drop_free.block_index` lays them. A program of the grid multiplies one
block; the blocks pass by fastest, so a matrix is fetched once for all consecutive blocks of its expert. JAX's own
`megablox` does not say over which axes of the mesh its result varies, and so cannot stand in a checked `shard_map`.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from switch_jax.kernels.fused_attention import Core
from switch_jax.parallel import lift

# Runs the kernels in Python, on any platform: for tests.
INTERPRET = False
_LANES = 128
# Of a core's memory, for what the compiler needs itself.
_SPARE = 1_000_000


def grouped_product(core: Core, x: jax.Array, kernel: jax.Array, owner: jax.Array) -> jax.Array:
  """Multiplies each block of rows by the matrix of its expert, in float32.

  Args:
    core: of the devices.
    x: `[blocks * block, k]`.
    kernel: `[e, k, n]`.
    owner: int32 `[blocks]`, the expert of each block in ascending order; e for blocks that are not used.

  Returns:
    `[blocks * block, n]` in x's dtype, 0 in blocks that are not used, whose rows get gradient 0.
  """
  axes = frozenset().union(*(jax.typeof(array).mat.varying for array in (x, kernel, owner)))
  x, kernel, owner = (lift(array, sorted(axes - jax.typeof(array).mat.varying)) for array in (x, kernel, owner))
  return _grouped(core, x, kernel, owner)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grouped(core: Core, x: jax.Array, kernel: jax.Array, owner: jax.Array) -> jax.Array:
  return _to_rows(core, x, kernel, owner, transposed=False)


def _grouped_forward(core: Core, *arguments: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  return _grouped(core, *arguments), arguments


def _grouped_backward(core: Core, arguments: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[Any, ...]:
  x, kernel, owner = arguments
  return _to_rows(core, gradient, kernel, owner, transposed=True), _to_kernel(core, x, gradient, kernel, owner), None


_grouped.defvjp(_grouped_forward, _grouped_backward)


def _to_rows(core: Core, x: jax.Array, kernel: jax.Array, owner: jax.Array, *, transposed: bool) -> jax.Array:
  """Returns the rows times the matrices of their experts, or times these transposed."""
  (rows, fan_in), experts, blocks = x.shape, kernel.shape[0], owner.shape[0]
  fan_out, block = kernel.shape[1 if transposed else 2], rows // blocks
  size = x.dtype.itemsize

  def fits(of_in: int, of_out: int) -> bool:
    needed = 2 * size * (block * (of_in + of_out) + of_in * of_out) + 8 * block * of_out
    return needed + 4 * core.wide_operands * of_in * (block + of_out) <= core.vmem_bytes - _SPARE

  # All that is summed over if it fits, or every block would fetch its matrix again; then as much as possible.
  of_in, of_out = tiles(fan_in, fan_out, fits, lambda tile: tile)
  steps = fan_in // of_in

  def body(owner: Any, used: Any, x: Any, kernel: Any, y: Any, total: Any) -> None:
    step = pl.program_id(2)
    is_used = pl.program_id(1) < used[0]

    @pl.when(jnp.logical_not(is_used))
    def _() -> None:
      y[...] = jnp.zeros(y.shape, y.dtype)

    @pl.when(is_used)
    def _() -> None:
      found = _product(core, x[...], kernel[0], 1, 1 if transposed else 0)
      if steps == 1:
        y[...] = found.astype(y.dtype)
        return
      total[...] = found + jnp.where(step == 0, 0.0, total[...])

      @pl.when(step == steps - 1)
      def _() -> None:
        y[...] = total[...].astype(y.dtype)

  def at_kernel(o: Any, b: Any, i: Any, owner: Any, used: Any) -> tuple[Any, ...]:
    i = jnp.where(b < used[0], i, steps - 1)
    mine = jnp.minimum(owner[_used_block(b, used)], experts - 1)
    return (mine, o, i) if transposed else (mine, i, o)

  def at_x(o: Any, b: Any, i: Any, owner: Any, used: Any) -> tuple[Any, ...]:
    return _used_block(b, used), jnp.where(b < used[0], i, steps - 1)

  return _call(
    core,
    body,
    (fan_out // of_out, blocks, steps),
    owner,
    experts,
    {
      'x': (x, pl.BlockSpec((block, of_in), at_x)),
      'kernel': (kernel, pl.BlockSpec((1, of_out, of_in) if transposed else (1, of_in, of_out), at_kernel)),
    },
    ((rows, fan_out), x.dtype, pl.BlockSpec((block, of_out), lambda o, b, i, owner, used: (b, o))),
    scratch=(block, of_out) if steps > 1 else (8, _LANES),
    flops=2 * rows * fan_in * fan_out,
  )


def _to_kernel(core: Core, x: jax.Array, gradient: jax.Array, kernel: jax.Array, owner: jax.Array) -> jax.Array:
  """Returns the gradient of the matrices: the sums over the blocks of each of them."""
  experts, fan_in, fan_out = kernel.shape
  rows, blocks = x.shape[0], owner.shape[0]
  block, size = rows // blocks, x.dtype.itemsize

  def fits(of_in: int, of_out: int) -> bool:
    # The sum, what is added to it, and what is being written.
    needed = (8 + 2 * kernel.dtype.itemsize) * of_in * of_out + 2 * size * block * (of_in + of_out)
    return needed + 4 * core.wide_operands * block * (of_in + of_out) <= core.vmem_bytes - _SPARE

  # The rows are read once for every tile of the other side.
  of_in, of_out = tiles(fan_in, fan_out, fits, lambda tile: -(1 / tile[0] + 1 / tile[1]))

  def body(owner: Any, used: Any, x: Any, gradient: Any, to_kernel: Any, total: Any) -> None:
    b = pl.program_id(2)
    mine = owner[b]
    is_first = (b == 0) | (owner[jnp.maximum(b - 1, 0)] != mine)
    is_last = (b == blocks - 1) | (owner[jnp.minimum(b + 1, blocks - 1)] != mine)

    @pl.when(b < used[0])
    def _() -> None:
      found = _product(core, x[...], gradient[...], 0, 0)

      @pl.when(is_first)
      def _() -> None:
        total[...] = found

      @pl.when(jnp.logical_not(is_first))
      def _() -> None:
        total[...] += found

      @pl.when(is_last)
      def _() -> None:
        to_kernel[0] = total[...].astype(to_kernel.dtype)

  def at_kernel(i: Any, o: Any, b: Any, owner: Any, used: Any) -> tuple[Any, ...]:
    return jnp.minimum(owner[_used_block(b, used)], experts - 1), i, o

  found = _call(
    core,
    body,
    (fan_in // of_in, fan_out // of_out, blocks),
    owner,
    experts,
    {
      'x': (x, pl.BlockSpec((block, of_in), lambda i, o, b, owner, used: (_used_block(b, used), i))),
      'gradient': (gradient, pl.BlockSpec((block, of_out), lambda i, o, b, owner, used: (_used_block(b, used), o))),
    },
    (kernel.shape, kernel.dtype, pl.BlockSpec((1, of_in, of_out), at_kernel)),
    scratch=(of_in, of_out),
    flops=2 * rows * fan_in * fan_out,
  )
  has_rows = jnp.any(owner[:, None] == jnp.arange(experts), axis=0)  # what no block has written is undefined
  return jnp.where(has_rows[:, None, None], found, 0)


def tiles(first: int, second: int, fits: Callable[[int, int], bool], worth: Callable[[tuple[int, int]], Any]) -> Any:
  """Returns how a matrix is cut: the tile of most worth that fits, or the smallest.

  Args:
    first, second: the matrix's sides. A tile's divide them, and are whole or multiples of 128.
    fits: whether a tile's sides fit the core's memory.
    worth: of a tile, to compare.
  """
  cuts = [
    [t for t in range(side, 0, -1) if side % t == 0 and (t == side or t % _LANES == 0)] for side in (first, second)
  ]
  return max((t for t in itertools.product(*cuts) if fits(*t)), key=worth, default=(cuts[0][-1], cuts[1][-1]))


def _used_block(b: Any, used: Any) -> Any:
  """Returns the block itself, or the last used one: nothing is fetched for those after it."""
  return jnp.maximum(jnp.minimum(b, used[0] - 1), 0)


def _product(core: Core, a: jax.Array, b: jax.Array, contract_a: int, contract_b: int) -> jax.Array:
  a, b = (x.astype(jnp.float32) if core.wide_operands else x for x in (a, b))
  return jax.lax.dot_general(a, b, (((contract_a,), (contract_b,)), ((), ())), preferred_element_type=jnp.float32)


def _call(
  core: Core,
  body: Callable[..., None],
  grid: tuple[int, ...],
  owner: jax.Array,
  experts: int,
  inputs: dict[str, tuple[jax.Array, pl.BlockSpec]],
  output: tuple[tuple[int, ...], Any, pl.BlockSpec],
  *,
  scratch: tuple[int, int],
  flops: int,
) -> jax.Array:
  """Runs a kernel, which gets the owners, how many blocks are used, the inputs, the output and a float32 scratch."""
  shape, dtype, spec = output
  arrays = [array for array, _ in inputs.values()]
  result = jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(arrays[0]).manual_axis_type)
  used = jnp.sum(owner < experts, dtype=jnp.int32)[None]
  # The blocks that one output's tile is for pass by in order; in `_to_kernel` these are the grid's last axis alone.
  return pl.pallas_call(
    body,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=grid,
      in_specs=[block for _, block in inputs.values()],
      out_specs=spec,
      scratch_shapes=[pltpu.VMEM(scratch, jnp.float32)],
    ),
    out_shape=result,
    interpret=INTERPRET,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary'), vmem_limit_bytes=core.vmem_bytes
    ),
    cost_estimate=pl.CostEstimate(
      flops=flops,
      bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in [*arrays, result]),
      transcendentals=0,
    ),
  )(owner, used, *arrays)
