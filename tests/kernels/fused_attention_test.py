"""The TPU kernels of attention, interpreted, against the plain form: outputs and every gradient."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from switch_jax import kernels
from switch_jax.config import MeshConfig
from switch_jax.kernels import fused_attention
from switch_jax.kernels.attention import attend
from switch_jax.kernels.fused_attention import Core, heads_of_block, queries_of_block
from switch_jax.parallel import Layout, make_mesh
from tests.kernels.attention_test import ROWS, arguments, value_and_gradients


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  monkeypatch.setattr(fused_attention, 'INTERPRET', True)


def compare(given, causal, layout=None):
  layout = layout or Layout(Layout.single_device().mesh, kernels=(('attention', 'fused'),))
  plain = value_and_gradients(functools.partial(attend, causal=causal), given)
  found = value_and_gradients(functools.partial(kernels.attention, layout, causal=causal), given)
  dtype = given[0].dtype
  tolerance = dict(atol=2e-5) if dtype == 'float32' else dict(atol=0.03, rtol=0.03)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), **tolerance),
    found,
    plain,
  )
  assert found[0].dtype == dtype


CASES = [
  (False, True, True, 'float32'),
  (True, True, False, 'float32'),
  (True, False, True, 'float32'),
  (False, False, True, 'bfloat16'),
  (True, True, True, 'bfloat16'),
]


@pytest.mark.parametrize(('causal', 'has_bias', 'has_keep', 'dtype'), CASES)
def test_whole_rows(causal, has_bias, has_keep, dtype):
  compare(arguments(dtype, 7 if causal else 5, has_bias, has_keep), causal)


@pytest.mark.parametrize(('causal', 'has_bias', 'has_keep', 'dtype'), CASES)
def test_blocks_of_queries(monkeypatch, causal, has_bias, has_keep, dtype):
  """Blocks of two queries, the last one padded."""
  monkeypatch.setattr(fused_attention, 'queries_of_block', lambda core, *sizes: 2)
  compare(arguments(dtype, 7 if causal else 5, has_bias, has_keep), causal)


def test_tokens_of_a_prefix_see_each_other(monkeypatch):
  mesh = make_mesh(MeshConfig(data=2, expert=2, model=2), None)
  monkeypatch.setattr(fused_attention, 'queries_of_block', lambda core, *sizes: 2)
  compare(arguments('float32', 7, has_prefix=True), True, Layout(mesh, kernels=(('attention', 'fused'),)))


@pytest.mark.parametrize('block', [2, 4])
def test_positions_over_the_model_axis(monkeypatch, block):
  """Four queries a device, in blocks or whole; keys are gathered and their gradients summed."""
  monkeypatch.setattr(fused_attention, 'queries_of_block', lambda core, *sizes: block)
  mesh = make_mesh(MeshConfig(data=2, expert=2, model=2), None)
  rules = (('length', 'model'), ('heads', None), ('activation_vocab', None))
  given = arguments('float32', 8, has_prefix=True, num_keys=8)
  layout = Layout(mesh, rules, kernels=(('attention', 'fused'),))
  compare(given, True, layout)
  assert fused_attention._specs(layout, given)[0] == PartitionSpec(('data', 'expert'), ('model',), None, None)


@pytest.mark.parametrize('axes', [{'data': 2, 'expert': 4}, {'data': 2, 'expert': 2, 'model': 2}], ids=str)
def test_on_a_mesh(axes):
  mesh = make_mesh(MeshConfig(**axes), None)
  compare(arguments('float32', 7), True, Layout(mesh, kernels=(('attention', 'fused'),)))


def test_a_query_without_keys_averages_all_values():
  query, key, value, of_queries, of_keys, *_ = arguments('float32', has_bias=False, has_keep=False)
  layout = Layout(Layout.single_device().mesh, kernels=(('attention', 'fused'),))
  y = kernels.attention(layout, query, key, value, of_queries + 5, of_keys)
  np.testing.assert_allclose(y[:, 0], value.mean(axis=1), atol=1e-6)
  assert y.shape[0] == ROWS


@pytest.mark.parametrize(('heads', 'width', 'block'), [(12, 64, 2), (32, 128, 1), (64, 256, 1), (3, 64, 3), (4, 48, 4)])
def test_heads_fill_the_lanes(heads, width, block):
  assert heads_of_block(heads, width) == block


@pytest.mark.parametrize(
  ('megabytes', 'queries', 'keys', 'heads', 'width', 'block'),
  [
    (16.6, 512, 512, 2, 64, 512), (16.6, 114, 512, 2, 64, 114), (16.6, 1024, 1024, 2, 64, 256),
    (16.6, 2048, 2048, 2, 64, 64), (16.6, 4096, 4096, 2, 64, 0), (32, 4096, 4096, 2, 64, 64),
    (32, 4096, 4096, 1, 128, 128), (32, 9999, 9999, 2, 64, 0),
  ],
)  # fmt: skip
def test_queries_fit_the_core(megabytes, queries, keys, heads, width, block):
  assert queries_of_block(Core(int(megabytes * 1e6)), queries, keys, heads, width) == block
