"""Attention row by row against the plain form: outputs and every gradient, with bias, segments, dropout, causal."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax import kernels
from switch_jax.config import MeshConfig
from switch_jax.kernels.attention import attend
from switch_jax.parallel import Layout, make_mesh

ROWS, QUERIES, KEYS, HEADS, WIDTH = 8, 5, 7, 2, 4


def arguments(dtype, queries=QUERIES, has_bias=True, has_keep=True, has_prefix=False, num_keys=KEYS):
  keys = jax.random.split(jax.random.key(0), 8)
  query, key, value = (
    jax.random.normal(k, (ROWS, n, HEADS, WIDTH)).astype(dtype)
    for k, n in zip(keys, (queries, num_keys, num_keys))  # noqa: B905
  )
  of_queries = jax.random.randint(keys[3], (ROWS, queries), 0, 3)
  of_keys = jax.random.randint(keys[4], (ROWS, num_keys), 0, 3)
  bias = jax.random.normal(keys[5], (HEADS, queries, num_keys)) if has_bias else None
  keep = jax.random.bernoulli(keys[6], 0.8, (ROWS, HEADS, num_keys)) / 0.8 if has_keep else None
  prefix = jax.random.randint(keys[7], (ROWS, num_keys), 0, 2) if has_prefix else None
  return query, key, value, of_queries, of_keys, bias, keep, prefix


def value_and_gradients(function, given):
  query, key, value, of_queries, of_keys, bias, keep, prefix = given
  dense = tuple(x for x in (query, key, value, bias) if x is not None)

  def loss(dense):
    q, k, v, *rest = dense
    y = function(q, k, v, of_queries, of_keys, rest[0] if rest else None, keep, prefix)
    return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

  (_, y), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(dense)
  return y, gradients


@pytest.mark.parametrize('written_out', [False, True])
@pytest.mark.parametrize('mesh', [(1, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize(
  ('causal', 'has_bias', 'has_keep', 'dtype'),
  [(False, True, True, 'float32'), (True, True, False, 'float32'), (False, False, True, 'bfloat16')],
)
def test_row_by_row_is_the_plain_form(mesh, causal, has_bias, has_keep, dtype, written_out, monkeypatch):
  if written_out:  # as where a row has many scores
    monkeypatch.setattr(sys.modules['switch_jax.kernels.attention'], '_LARGE_SCORES', 1)
  given = arguments(dtype, KEYS if causal else QUERIES, has_bias, has_keep)
  layout = Layout(
    make_mesh(MeshConfig(data=mesh[0], expert=mesh[1], model=mesh[2]), None, jax.devices()[: np.prod(mesh)])
  )
  assert kernels.forms(layout)['attention'] == 'by_row'
  plain = value_and_gradients(functools.partial(attend, causal=causal), given)
  found = value_and_gradients(functools.partial(kernels.attention, layout, causal=causal), given)
  tolerance = dict(atol=2e-5) if dtype == 'float32' else dict(atol=0.03, rtol=0.03)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), **tolerance),
    found,
    plain,
  )
  assert found[0].dtype == jnp.dtype(dtype)


def test_tokens_of_a_prefix_see_each_other():
  """Row by row on a mesh; and the plain form is what the words say."""
  given = arguments('float32', KEYS, has_prefix=True)
  layout = Layout(make_mesh(MeshConfig(data=2, expert=2, model=2), None))
  plain = value_and_gradients(functools.partial(attend, causal=True), given)
  found = value_and_gradients(functools.partial(kernels.attention, layout, causal=True), given)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, plain)
  prefix = np.asarray(given[-1], bool)
  sees = np.tri(KEYS, dtype=bool) | (prefix[:, :, None] & prefix[:, None, :])
  sees &= (np.asarray(given[3])[:, :, None] == np.asarray(given[4])[:, None, :]) & (np.asarray(given[4]) > 0)[:, None]
  moved = jax.jacobian(lambda value: attend(*given[:2], value, *given[3:], causal=True).sum((2, 3)))(given[2])
  weighed = np.abs(moved[np.arange(ROWS), :, np.arange(ROWS)]).sum((-1, -2)) > 0  # [rows, queries, keys]
  kept = (given[6] > 0).any(1)[:, None]
  has_keys = sees.any(-1, keepdims=True)  # one without averages all values
  np.testing.assert_array_equal(weighed & has_keys, sees & kept)


def test_the_plain_form_can_be_asked_for():
  given = arguments('float32')
  layout = Layout(Layout.single_device().mesh, kernels=(('attention', 'plain'),))
  text = jax.jit(lambda *a: kernels.attention(layout, *a)).lower(*given).as_text()
  assert 'while' not in text
  np.testing.assert_allclose(kernels.attention(layout, *given), attend(*given), atol=1e-6)


def test_a_query_without_keys_averages_all_values():
  query, key, value, of_queries, of_keys, *_ = arguments('float32', has_bias=False, has_keep=False)
  y = kernels.attention(Layout.single_device(), query, key, value, of_queries + 5, of_keys)
  np.testing.assert_allclose(y[:, 0], value.mean(axis=1), atol=1e-6)
