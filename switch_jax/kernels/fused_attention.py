"""Attention for TPUs in one Pallas kernel a direction: the scores never leave the core's memory.

The plain form writes scores of batch x heads x length x length to HBM and reads them back, three times in a step: a
third of the time of a step of switch_base on a TPU v3. Here a program of the grid holds the queries of one row and
block of heads, all its keys, and the scores between them; backwards these are computed again, so nothing but the
arguments is kept. T5's bias is shared by the rows, so its gradient is summed in the core while they pass by.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from switch_jax.config.mesh import as_tuple
from switch_jax.parallel import Layout

# Large enough that adding a score leaves it unchanged in float32: a query without keys averages all values, as T5X.
MASKED = -1e10
# Runs the kernels in Python, on any platform: for tests.
INTERPRET = False
_LANES, _SUBLANES = 128, 8


@dataclasses.dataclass(frozen=True)
class Core:
  """What a kernel has to know of a TPU.

  Attributes:
    vmem_bytes: that it may use.
    wide_operands: Mosaic takes bfloat16 operands of a product as float32 only.
  """

  vmem_bytes: int = 32_000_000
  wide_operands: bool = False


# By the device's kind; later ones have four times as much memory, or more.
_CORES = {
  'TPU v2': Core(16_600_000, wide_operands=True),
  'TPU v3': Core(16_600_000, wide_operands=True),
  'TPU v4': Core(16_600_000),
}

Arrays = tuple[jax.Array | None, ...]


def fits(layout: Layout, query: jax.Array, key: jax.Array) -> bool:
  """Whether the keys of a row fit the memory of a core: 2,048 in v2 to v4, 4,096 and more in the others."""
  return _Cut(core_of(layout), query, key, key, None, None, None, None, None).block > 0


def attend_fused(layout: Layout, *arguments: jax.Array | None, causal: bool = False) -> jax.Array:
  """The form of `attention` for TPUs; arguments, from the query to the prefix, and result are those of it."""
  return _attend(layout, causal, *arguments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(layout: Layout, causal: bool, *arguments: jax.Array | None) -> jax.Array:
  core = core_of(layout)

  def forward(query: jax.Array, *others: jax.Array | None) -> jax.Array:
    return _forward(causal, core, _first_query(layout, query), query, *others)

  return _by_shard(layout, forward, arguments, _specs(layout, arguments)[0])


def _attend_forward(layout: Layout, causal: bool, *arguments: jax.Array | None) -> tuple[jax.Array, Arrays]:
  return _attend(layout, causal, *arguments), arguments


def _attend_backward(layout: Layout, causal: bool, arguments: Arrays, gradient: jax.Array) -> Arrays:
  specs, has_bias, core = _specs(layout, arguments), arguments[5] is not None, core_of(layout)

  def backward(gradient: jax.Array, *arguments: jax.Array | None) -> list[jax.Array]:
    found = _backward(causal, core, _first_query(layout, gradient), gradient, *arguments)
    if split := _query_axes(layout):  # keys and values serve the queries of all parts
      found[1:3] = jax.lax.psum(found[1:3], split)
    if has_bias and layout.token_axes:
      found[3] = jax.lax.psum(found[3], layout.token_axes)
    return found

  outputs = specs[:3] + ([specs[5]] if has_bias else [])
  found = _by_shard(layout, backward, arguments, outputs, gradient)
  return (*found[:3], None, None, found[3] if has_bias else None, None, None)


_attend.defvjp(_attend_forward, _attend_backward)


def core_of(layout: Layout) -> Core:
  """Returns what kernels have to know of a layout's devices."""
  assert isinstance(layout.mesh, Mesh)
  return _CORES.get(layout.mesh.devices.flat[0].device_kind, Core())


def _query_axes(layout: Layout) -> tuple[str, ...]:
  """Returns the mesh axes over which the rules split positions; keys are whole there. None where they have heads."""
  heads = as_tuple(layout.spec('heads')[0])
  axes = tuple(axis for axis in as_tuple(layout.spec('length')[0]) if layout.size(axis) > 1)
  return () if set(axes) & set(heads) else axes


def _first_query(layout: Layout, query: jax.Array) -> jax.Array | None:
  """Returns the position of the first of a device's queries; None where it has all of them."""
  axes = _query_axes(layout)
  return jax.lax.axis_index(axes) * query.shape[1] if axes else None


def _specs(layout: Layout, arguments: Arrays) -> list[Any]:
  """Returns how the arguments lie: rows over the token axes, heads and queries where the rules have them."""
  rows, heads, queries = layout.token_axes or None, layout.spec('heads')[0], _query_axes(layout) or None
  found: list[Any] = [P(rows, queries, heads, None), *[P(rows, None, heads, None)] * 2, P(rows, queries), P(rows, None)]
  found += [None if arguments[5] is None else P(heads, queries, None)]
  found += [None if arguments[6] is None else P(rows, heads, None)]
  return [*found, None if arguments[7] is None else P(rows, None)]


def _by_shard(layout: Layout, function: Callable[..., Any], arguments: Arrays, outputs: Any, *queries: Any) -> Any:
  """Runs a kernel on every device's part: automatic partitioning does not know what a kernel does."""
  if layout.mesh.size == 1:
    return function(*queries, *arguments)
  specs = _specs(layout, arguments)
  inputs = (*[specs[0] for _ in queries], *specs)
  run = jax.shard_map(function, mesh=layout.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
  return run(*queries, *arguments)


# On one device.


def _forward(causal: bool, core: Core, first: jax.Array | None, *arguments: Any) -> jax.Array:
  cut = _Cut(core, *arguments)

  def kernel(inputs: dict[str, Any], outputs: Sequence[Any]) -> None:
    for head in range(cut.block_heads):
      part = _Part(cut, inputs, head, causal)
      outputs[0][0, :, part.columns] = part.product(part.kept, part.value, 1, 0).astype(outputs[0].dtype)

  (found,) = cut.call(kernel, cut.prepare(arguments, first), ['query'], rows_last=False, products=2)
  return cut.unflatten(found)


def _backward(
  causal: bool, core: Core, first: jax.Array | None, gradient: jax.Array, *arguments: Any
) -> list[jax.Array]:
  """Returns the gradients of query, key and value, and of the bias if there is one."""
  cut = _Cut(core, *arguments)
  inputs = cut.prepare(arguments, first, gradient)
  of_rows = ['query', 'key', 'value'] + (['bias'] if cut.has_bias and cut.is_whole else [])
  found = cut.call(_gradients(cut, causal, of_rows), inputs, of_rows, rows_last=cut.is_whole, products=5)
  if cut.has_bias and not cut.is_whole:
    # Sums over rows and sums over queries cannot both stay in the core: the bias has a pass of its own.
    found += cut.call(_gradients(cut, causal, ['bias']), inputs, ['bias'], rows_last=True, products=2)
  query, key, value, *bias = found
  found = [cut.unflatten(query), *(x.reshape(*x.shape[:2], -1, cut.width) for x in (key, value))]
  return found + [x[:, : cut.queries] for x in bias]


def _gradients(cut: '_Cut', causal: bool, names: Sequence[str]) -> Callable[..., None]:
  def kernel(inputs: dict[str, Any], outputs: Sequence[Any]) -> None:
    of = dict(zip(names, outputs, strict=True))
    sums = [name for name in names if name == 'bias' or (name in ('key', 'value') and not cut.is_whole)]
    first: Any = pl.program_id(2) == 0  # of the rows, or of the blocks of queries: what passes by fastest

    @pl.when(first)
    def _() -> None:
      for name in sums:
        of[name][...] = jnp.zeros(of[name].shape, jnp.float32)

    for head in range(cut.block_heads):
      part = _Part(cut, inputs, head, causal)
      gradient = inputs['gradient'][0, :, part.columns]
      to_weights = part.product(gradient, part.value, 1, 1)
      if cut.has_keep:
        to_weights = to_weights * part.keep
      to_scores = part.weights * (to_weights - jnp.sum(part.weights * to_weights, axis=-1, keepdims=True))
      if 'bias' in of:
        of['bias'][head] += to_scores
      if 'query' in of:
        to_scores = to_scores.astype(part.query.dtype)
        at = (0, slice(None), part.columns)
        of['query'][at] = part.product(to_scores, part.key, 1, 0).astype(of['query'].dtype)
        to_key, to_value = part.product(to_scores, part.query, 0, 0), part.product(part.kept, gradient, 0, 0)
        for name, found in (('key', to_key), ('value', to_value)):
          of[name][at] = found.astype(of[name].dtype) if cut.is_whole else of[name][at] + found

  return kernel


class _Part:
  """One head of a program: what it reads, and the weights of its queries for its keys."""

  def __init__(self, cut: '_Cut', inputs: dict[str, Any], head: int, causal: bool):
    self._wide = cut.core.wide_operands
    self.columns = slice(head * cut.width, (head + 1) * cut.width)
    self.query, self.key, self.value = (inputs[name][0, :, self.columns] for name in ('query', 'key', 'value'))
    of_query, of_key = inputs['query_segments'][0], inputs['key_segments'][0]  # [queries, 1], [1, keys]
    scores = self.product(self.query, self.key, 1, 1)
    allowed = (of_query == of_key) & (of_key > 0)
    if causal:
      if 'positions' in inputs:
        position = inputs['positions'][...]  # [queries, 1]
      else:
        first = 0 if cut.is_whole else inputs['first_query']() * cut.block
        position = first + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
      visible = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1) <= position
      if cut.has_prefix:
        visible |= (inputs['query_prefix'][0] & inputs['key_prefix'][0]) > 0
      allowed &= visible
    mask = jnp.where(allowed, 0.0, MASKED)
    scores += mask + inputs['bias'][head] if cut.has_bias else mask
    exponentials = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    self.weights = exponentials / jnp.sum(exponentials, axis=-1, keepdims=True)
    self.keep: Any = inputs['keep'][0, 0, head : head + 1] if cut.has_keep else 1.0
    self.kept = (self.weights * self.keep if cut.has_keep else self.weights).astype(self.query.dtype)

  def product(self, a: jax.Array, b: jax.Array, contract_a: int, contract_b: int) -> jax.Array:
    """Multiplies two matrices along an axis of each, in float32."""
    a, b = (x.astype(jnp.float32) if self._wide else x for x in (a, b))
    return jax.lax.dot_general(a, b, (((contract_a,), (contract_b,)), ((), ())), preferred_element_type=jnp.float32)


def heads_of_block(heads: int, width: int) -> int:
  """Returns how many heads a program has: as many as fill the lanes, or all where that is no whole number."""
  if width % _LANES == 0:
    return 1
  fill = _LANES // width if _LANES % width == 0 else heads
  return fill if heads % fill == 0 else heads


def queries_of_block(core: Core, queries: int, keys: int, heads: int, width: int) -> int:
  """Returns how many queries a program has: all, or as many as fit the core's memory; 0 where the keys do not.

  Args:
    core: its memory.
    queries, keys: of a row.
    heads: of a block. One of them has its scores, weights and their gradient there at a time; all have their bias and
      its gradient, and what is fetched or written while the kernel computes is there twice.
    width: of a head.
  """
  # Two inputs in bfloat16 and two outputs in float32, each twice, and what the compiler spills; inputs in float32 too.
  of_keys = (52 if core.wide_operands else 28) * keys * heads * width
  left = core.vmem_bytes - 1_000_000 - of_keys
  if 4 * queries * keys * (3 + 3 * heads) <= left:
    return queries
  most = left // (4 * keys * (3 + 4 * heads))
  return 1 << (most.bit_length() - 1) if most >= _SUBLANES else 0


class _Cut:
  """The arrays as the kernels see them, heads side by side, and how they are cut into blocks."""

  def __init__(
    self,
    core: Core,
    query: Any,
    key: Any,
    value: Any,
    query_segments: Any,
    key_segments: Any,
    bias: Any,
    keep: Any,
    prefix: Any,
  ):
    self.core, self.has_prefix = core, prefix is not None
    self.rows, self.queries, self.heads, self.width = query.shape
    self.keys, self.dtype = key.shape[1], query.dtype
    self.has_bias, self.has_keep = bias is not None, keep is not None
    self.block_heads = heads_of_block(self.heads, self.width)
    self.block = queries_of_block(core, self.queries, self.keys, self.block_heads, self.width)
    self.padded = self.queries + -self.queries % max(1, self.block)
    self.is_whole = self.padded == self.block

  def unflatten(self, x: jax.Array) -> jax.Array:
    """Returns `[rows, queries, heads, width]` of what a kernel has written for the queries."""
    return x[:, : self.queries].reshape(self.rows, self.queries, self.heads, self.width)

  def prepare(self, arguments: Any, first: jax.Array | None, gradient: Any = None) -> dict[str, jax.Array]:
    """Returns the kernels' inputs by name; queries are padded to whole blocks, of segment 0 and with gradient 0.

    Args:
      arguments: of a device.
      first: position of its first query among the keys; None is 0.
      gradient: of the result.
    """
    query, key, value, query_segments, key_segments, bias, keep, prefix = arguments
    flat = lambda x: x.reshape(*x.shape[:2], -1)  # noqa: E731
    pad = lambda x: jnp.pad(x, [(0, 0), (0, self.padded - self.queries)] + [(0, 0)] * (x.ndim - 2))  # noqa: E731
    found = {'query': pad(flat(query)), 'key': flat(key), 'value': flat(value)}
    found |= {'query_segments': pad(query_segments)[:, :, None], 'key_segments': key_segments[:, None, :]}
    own = prefix
    if first is not None:
      found['positions'] = (first + jnp.arange(self.padded, dtype=jnp.int32))[:, None]
      own = prefix if prefix is None else jax.lax.dynamic_slice_in_dim(prefix, first, self.queries, 1)
    if self.has_prefix:
      found |= {'query_prefix': pad(own)[:, :, None], 'key_prefix': prefix[:, None, :]}
    if gradient is not None:
      found['gradient'] = pad(flat(gradient))
    if self.has_bias:
      found['bias'] = pad(bias.astype(jnp.float32))
    if self.has_keep:
      found['keep'] = keep.astype(jnp.float32).reshape(self.rows, -1, self.block_heads, self.keys)
    return found

  def call(
    self,
    kernel: Callable[[dict[str, Any], Sequence[Any]], None],
    inputs: dict[str, jax.Array],
    outputs: Sequence[str],
    *,
    rows_last: bool,
    products: int,
  ) -> list[jax.Array]:
    """Runs a kernel over the grid of blocks of heads, rows and blocks of queries; the last two in either order.

    Args:
      kernel: gets the inputs' blocks by name, and those of the outputs.
      inputs: what `prepare` has returned.
      outputs: some of `query`, `key`, `value` and `bias`, like which they are; keys' and values' are float32 where they
        are summed over blocks of queries.
      rows_last: rows pass by fastest, so that what is summed over them stays in the core.
      products: of queries, keys and width, for the compiler's estimate.
    """
    at = (lambda h, q, b: (h, b, q)) if rows_last else (lambda h, b, q: (h, b, q))
    spec = lambda shape, index: pl.BlockSpec(shape, lambda *ids: index(*at(*ids)))  # noqa: E731
    columns = self.block_heads * self.width
    of_queries = spec((1, self.block, columns), lambda h, b, q: (b, q, h))
    of_keys = spec((1, self.keys, columns), lambda h, b, q: (b, 0, h))
    of_bias = spec((self.block_heads, self.block, self.keys), lambda h, b, q: (h, q, 0))
    specs = {
      'query': of_queries,
      'gradient': of_queries,
      'key': of_keys,
      'value': of_keys,
      'query_segments': spec((1, self.block, 1), lambda h, b, q: (b, q, 0)),
      'key_segments': spec((1, 1, self.keys), lambda h, b, q: (b, 0, 0)),
      'positions': spec((self.block, 1), lambda h, b, q: (q, 0)),
      'query_prefix': spec((1, self.block, 1), lambda h, b, q: (b, q, 0)),
      'key_prefix': spec((1, 1, self.keys), lambda h, b, q: (b, 0, 0)),
      'bias': of_bias,
      'keep': spec((1, 1, self.block_heads, self.keys), lambda h, b, q: (b, h, 0, 0)),
    }
    # The bias of all rows stays where it is: it needs no second place for the next one.
    once = dataclasses.replace(of_bias, pipeline_mode=pl.Buffered(1))
    blocks = (self.heads // self.block_heads, self.rows, self.padded // self.block)
    summed = {} if self.is_whole else {'key': jnp.float32, 'value': jnp.float32}
    results = [jax.ShapeDtypeStruct(inputs[n].shape, summed.get(n, inputs[n].dtype)) for n in outputs]
    scores = self.rows * self.heads * self.padded * self.keys
    arrays: list[Any] = [*inputs.values(), *results]
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)

    def body(*references: Any) -> None:
      named = dict(zip(inputs, references[: len(inputs)], strict=True))
      named['first_query'] = lambda: pl.program_id(1 if rows_last else 2)
      kernel(named, references[len(inputs) :])

    found = pl.pallas_call(
      body,
      grid=(blocks[0], blocks[2], blocks[1]) if rows_last else blocks,
      in_specs=[once if name == 'bias' and self.is_whole else specs[name] for name in inputs],
      out_specs=[specs[name] for name in outputs],
      out_shape=results,
      interpret=INTERPRET,
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel', 'arbitrary', 'arbitrary'), vmem_limit_bytes=self.core.vmem_bytes
      ),
      cost_estimate=pl.CostEstimate(
        flops=2 * products * scores * self.width, bytes_accessed=moved, transcendentals=scores
      ),
    )(*inputs.values())
    return [x.astype(inputs[name].dtype) for name, x in zip(outputs, found, strict=True)]
