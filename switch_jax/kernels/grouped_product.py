"""Rows sorted by expert times the matrices of their experts, in one Pallas kernel for TPUs.

The rows come in blocks of one expert each, as `drop_free.block_index` lays them. A program of the grid multiplies one
block; the blocks pass by fastest, so a matrix is fetched once for all consecutive blocks of its expert. JAX's own
`megablox` does not say over which axes of the mesh its result varies, and so cannot stand in a checked `shard_map`.
"""

import functools
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
  (rows, fan_in), block, size = x.shape, x.shape[0] // owner.shape[0], x.dtype.itemsize
  fan_out = kernel.shape[1 if transposed else 2]

  def fits(of_in: int, of_out: int) -> bool:
    needed = 2 * size * (block * (of_in + of_out) + of_in * of_out) + 8 * block * of_out
    return needed + 4 * core.wide_operands * of_in * (block + of_out) <= core.vmem_bytes - _SPARE

  # All that is summed over if it fits, or every block would fetch its matrix again; then as much as possible.
  of_in, of_out = tiles(fan_in, fan_out, fits, lambda *tile: tile)
  steps = fan_in // of_in

  def body(owner: Any, used: Any, x: Any, kernel: Any, y: Any, *total: Any) -> None:
    is_used, step = pl.program_id(1) < used[0], pl.program_id(2)

    @pl.when(jnp.logical_not(is_used))
    def _() -> None:
      y[...] = jnp.zeros(y.shape, y.dtype)

    @pl.when(is_used)
    def _() -> None:
      found = _product(core, x[...], kernel[0], 1, 1 if transposed else 0)
      if total:
        found += jnp.where(step == 0, 0.0, total[0][...])
        total[0][...] = found
      y[...] = found.astype(y.dtype)  # of the last step at last

  def at_kernel(o: Any, b: Any, i: Any, used: Any, mine: Any) -> tuple[Any, ...]:
    i = jnp.where(b == used, i, steps - 1)
    return (mine, o, i) if transposed else (mine, i, o)

  at_x = lambda o, b, i, used, mine: (used, jnp.where(b == used, i, steps - 1))  # noqa: E731
  inputs = [(x, (block, of_in), at_x), (kernel, (1, of_out, of_in) if transposed else (1, of_in, of_out), at_kernel)]
  output = jax.ShapeDtypeStruct((rows, fan_out), x.dtype), (block, of_out), lambda o, b, *_: (b, o)
  scratch = [(block, of_out)] if steps > 1 else []
  return _call(core, body, (fan_out // of_out, owner.shape[0], steps), 1, owner, kernel.shape, inputs, output, scratch)


def _to_kernel(core: Core, x: jax.Array, gradient: jax.Array, kernel: jax.Array, owner: jax.Array) -> jax.Array:
  """Returns the gradient of the matrices: the sums over the blocks of each of them."""
  experts, fan_in, fan_out = kernel.shape
  blocks, size = owner.shape[0], x.dtype.itemsize
  block = x.shape[0] // blocks

  def fits(of_in: int, of_out: int) -> bool:
    # The sum, what is added to it, and what is being written.
    needed = (8 + 2 * kernel.dtype.itemsize) * of_in * of_out + 2 * size * block * (of_in + of_out)
    return needed + 4 * core.wide_operands * block * (of_in + of_out) <= core.vmem_bytes - _SPARE

  # The rows are read once for every tile of the other side.
  of_in, of_out = tiles(fan_in, fan_out, fits, lambda a, b: -(1 / a + 1 / b))

  def body(owner: Any, used: Any, x: Any, gradient: Any, to_kernel: Any, total: Any) -> None:
    b = pl.program_id(2)
    is_first = (b == 0) | (owner[jnp.maximum(b - 1, 0)] != owner[b])
    is_last = (b == blocks - 1) | (owner[jnp.minimum(b + 1, blocks - 1)] != owner[b])

    @pl.when(b < used[0])
    def _() -> None:
      total[...] = _product(core, x[...], gradient[...], 0, 0) + jnp.where(is_first, 0.0, total[...])

      @pl.when(is_last)
      def _() -> None:
        to_kernel[0] = total[...].astype(to_kernel.dtype)

  inputs = [
    (x, (block, of_in), lambda i, o, b, used, mine: (used, i)),
    (gradient, (block, of_out), lambda i, o, b, used, mine: (used, o)),
  ]
  output = (
    jax.ShapeDtypeStruct(kernel.shape, kernel.dtype),
    (1, of_in, of_out),
    lambda i, o, b, used, mine: (mine, i, o),
  )
  grid = fan_in // of_in, fan_out // of_out, blocks
  found = _call(core, body, grid, 2, owner, kernel.shape, inputs, output, [(of_in, of_out)])
  has_rows = jnp.any(owner[:, None] == jnp.arange(experts), axis=0)  # what no block has written is undefined
  return jnp.where(has_rows[:, None, None], found, 0)


def tiles(first: int, second: int, fits: Callable[[int, int], bool], worth: Callable[[int, int], Any]) -> Any:
  """Returns how a matrix is cut: the sides of the tile of most worth that fits, or of the smallest.

  Args:
    first, second: the matrix's sides. A tile's divide them, and are whole or multiples of 128.
    fits: whether a tile of such sides fits the core's memory.
    worth: of a tile of such sides, to compare.
  """
  cut = lambda side: [t for t in range(1, side + 1) if side % t == 0 and (t == side or t % _LANES == 0)]  # noqa: E731
  every = [(a, b) for a in cut(first) for b in cut(second)]
  return max((tile for tile in every if fits(*tile)), key=lambda tile: worth(*tile), default=every[0])


def _product(core: Core, a: jax.Array, b: jax.Array, contract_a: int, contract_b: int) -> jax.Array:
  a, b = (x.astype(jnp.float32) if core.wide_operands else x for x in (a, b))
  return jax.lax.dot_general(a, b, (((contract_a,), (contract_b,)), ((), ())), preferred_element_type=jnp.float32)


def _call(
  core: Core, body: Any, grid: Any, of_blocks: int, owner: Any, kernel: Any, inputs: Any, output: Any, scratch: Any
) -> jax.Array:
  """Runs a kernel, which gets the owners, how many blocks are used, the inputs, the output and float32 scratch.

  An input is an array, the shape of its tiles, and a function to a tile's place from the place in the grid, the block
  of rows (the last used one for those after it, so that nothing is fetched for them) and its expert; the output has a
  shape and dtype for the array. `of_blocks` is the grid's axis of the blocks, `kernel` the shape of the matrices.
  """

  def spec(shape: Any, index: Any) -> pl.BlockSpec:
    def at(*arguments: Any) -> Any:
      *ids, owner, used = arguments
      block = jnp.maximum(jnp.minimum(ids[of_blocks], used[0] - 1), 0)
      return index(*ids, block, jnp.minimum(owner[block], kernel[0] - 1))

    return pl.BlockSpec(shape, at)

  arrays, result = [one[0] for one in inputs], output[0]
  moved = sum(math.prod(one.shape) * one.dtype.itemsize for one in [*arrays, result])
  return pl.pallas_call(
    body,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=grid,
      in_specs=[spec(*one[1:]) for one in inputs],
      out_specs=spec(*output[1:]),
      scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
    ),
    out_shape=result.update(manual_axis_type=jax.typeof(arrays[0]).mat),
    interpret=INTERPRET,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary'), vmem_limit_bytes=core.vmem_bytes
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * arrays[0].shape[0] * math.prod(kernel[1:]), bytes_accessed=moved, transcendentals=0
    ),
  )(owner, jnp.sum(owner < kernel[0], dtype=jnp.int32)[None], *arrays)
