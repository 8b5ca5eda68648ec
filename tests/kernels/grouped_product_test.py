"""The product of experts for TPUs, interpreted: outputs and gradients are those of single blocks, whoever owns them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from switch_jax.config import MeshConfig
from switch_jax.kernels import grouped_product as module
from switch_jax.kernels.fused_attention import Core
from switch_jax.kernels.grouped_product import grouped_product, tiles
from switch_jax.parallel import Layout, make_mesh

EXPERTS, BLOCK, K, N = 3, 8, 16, 24
# Some of each, an expert without a block, one expert alone, blocks that are not used, no block that is.
OWNERS = [[0, 0, 1, 2, 2, 3], [0, 0, 2, 2, 3, 3], [1, 1, 1, 1, 1, 1], [2, 3, 3, 3, 3, 3], [3, 3, 3, 3, 3, 3]]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  monkeypatch.setattr(module, 'INTERPRET', True)


def arrays(blocks, dtype='float32', k=K, n=N):
  of_x, of_kernel, of_weight = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(of_x, (blocks * BLOCK, k), dtype)
  weight = jax.random.normal(of_weight, (blocks * BLOCK, n), dtype)
  return x, jax.random.normal(of_kernel, (EXPERTS, k, n), dtype), weight


def plain(x, kernel, owner):
  every_expert = jnp.concatenate([kernel, jnp.zeros_like(kernel[:1])])
  rows = x.reshape(len(owner), -1, x.shape[-1])
  y = jnp.einsum('brk,bkn->brn', rows, every_expert[owner], preferred_element_type='float32')
  return y.astype(x.dtype).reshape(len(x), -1)


def value_and_gradients(function, x, kernel, owner, weight):
  value, back = jax.vjp(lambda x, kernel: function(x, kernel, owner), x, kernel)
  return value, *back(weight)


def compare(owner, dtype='float32', core=Core(), k=K, n=N):  # noqa: B008
  x, kernel, weight = arrays(len(owner), dtype, k, n)
  owner = jnp.array(owner, jnp.int32)
  expected = value_and_gradients(plain, x, kernel, owner, weight)
  found = jax.jit(functools.partial(value_and_gradients, functools.partial(grouped_product, core)))(
    x, kernel, owner, weight
  )
  tolerance = dict(atol=1e-4) if dtype == 'float32' else dict(atol=0.1, rtol=0.03)
  for a, b in zip(found, expected, strict=True):
    assert a.dtype == dtype
    np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), **tolerance)
  unused = np.repeat(np.asarray(owner) == EXPERTS, BLOCK)
  assert not np.asarray(found[0])[unused].any()
  assert not np.asarray(found[1])[unused].any()
  assert not np.asarray(found[2])[np.setdiff1d(np.arange(EXPERTS), owner)].any()


@pytest.mark.parametrize('owner', OWNERS, ids=str)
def test_output_and_gradients_are_those_of_single_blocks(owner):
  compare(owner)


@pytest.mark.parametrize('wide_operands', [False, True])
def test_bfloat16(wide_operands):
  compare(OWNERS[1], 'bfloat16', Core(wide_operands=wide_operands))


def test_matrices_in_tiles_both_ways():
  """Tiles of 128, so that sums over the width pass by in steps."""
  compare(OWNERS[1], core=Core(0), k=256, n=384)


def test_inside_a_checked_shard_map():
  """Traced only, JAX's interpreter does not know the axes that arrays vary over. Gradients are summed where needed."""
  layout = Layout(make_mesh(MeshConfig(data=2, expert=4), None))
  x, kernel, weight = arrays(8)
  rows = P(layout.token_axes)

  def gradients(x, kernel, owner, weight):
    return jax.vjp(lambda x, kernel: grouped_product(Core(), x, kernel, owner), x, kernel)[1](weight)

  for of_kernel, sums in ((P(), 1), (P('expert'), 1), (rows, 0)):
    shards = 1 if of_kernel == P() else layout.mesh.size if of_kernel == rows else 4
    on_shard = layout.per_token_shard(gradients, (rows, of_kernel, rows, rows), (rows, of_kernel), by_width=True)
    given = jnp.concatenate([kernel] * shards)
    traced = jax.make_jaxpr(on_shard)(x, given, jnp.zeros(8, jnp.int32), weight)
    assert [value.shape for value in traced.out_avals] == [x.shape, given.shape]
    assert str(traced).count(' psum') == sums


@pytest.mark.parametrize(('block', 'core'), [(256, Core()), (8, Core(16_600_000, wide_operands=True))])
def test_it_lowers_for_tpus_inside_a_checked_shard_map(monkeypatch, block, core):
  """At switch_base's size, as far as JAX lowers it by itself; the TPU compiler is not asked."""
  monkeypatch.setattr(module, 'INTERPRET', False)
  layout = Layout(make_mesh(MeshConfig(expert=8), None))
  rows = P(layout.token_axes)

  def gradients(x, kernel, owner, weight):
    y, back = jax.vjp(lambda x, kernel: grouped_product(core, x, kernel, owner), x, kernel)
    return y, back(weight)

  on_shard = jax.jit(layout.per_token_shard(gradients, (rows,) * 4, (rows, (rows, rows)), by_width=True))
  shapes = (8 * 4 * block, 768), (8 * 4, 768, 3072), (8 * 4,), (8 * 4 * block, 3072)
  given = [jax.ShapeDtypeStruct(shape, 'int32' if len(shape) == 1 else 'bfloat16') for shape in shapes]
  text = jax.export.export(on_shard, platforms=['tpu'])(*given).mlir_module()
  assert text.count('@tpu_custom_call') == 3


def test_tiles_divide_the_matrix_and_fit():
  most = lambda limit: lambda a, b: a * b <= limit  # noqa: E731
  whole_first = lambda *tile: tile  # noqa: E731
  assert tiles(768, 3072, most(768 * 1024), whole_first) == (768, 1024)
  assert tiles(768, 3072, most(0), whole_first) == (128, 128)
  assert tiles(100, 3072, most(0), whole_first) == (100, 128)
  assert tiles(3072, 768, most(1024 * 768), lambda a, b: -(1 / a + 1 / b)) == (1024, 768)
