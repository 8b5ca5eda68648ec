"""What experts make of their tokens, given logits and kernels, against a loop over the tokens in NumPy."""

import functools

import jax
import numpy as np
import pytest

from switch_jax.config import ConfigError, MeshConfig, ModelConfig, MoeConfig
from switch_jax.model.experts import Experts, apply, network
from switch_jax.parallel import Layout, make_mesh

ROWS, LENGTH, WIDTH, HIDDEN, EXPERTS, OUT = 8, 3, 4, 6, 4, 8
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
LOGITS = RANDOM.normal(size=(ROWS, LENGTH, EXPERTS)).astype(np.float32)
REAL = np.arange(LENGTH) < np.array([3, 3, 2, 3, 1, 3, 3, 0])[:, None]
KERNELS = {
  'mlp': {'wi': (EXPERTS, WIDTH, HIDDEN), 'wo': (EXPERTS, HIDDEN, OUT)},
  'linear': {'w': (EXPERTS, WIDTH, OUT)},
}
KERNELS = {
  kind: {name: RANDOM.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  for kind, shapes in KERNELS.items()
}


def model_config(**moe):
  return ModelConfig(
    vocab_size=8, emb_dim=WIDTH, num_heads=2, head_dim=4, mlp_dim=HIDDEN, num_encoder_layers=2, num_decoder_layers=2,
    moe=MoeConfig(num_experts=EXPERTS, **moe),
  )  # fmt: skip


@functools.cache
def layout(data=1, expert=1, model=1):
  mesh = MeshConfig(data=data, expert=expert, model=model)
  return Layout(make_mesh(mesh, None, jax.devices()[: data * expert * model]))


def applied(kind, where=None, never_drop=False, **moe):
  how = Experts(model_config(**moe), where or layout(), True, kind, OUT, never_drop)
  return jax.jit(functools.partial(apply, how, noise={}, dropout_key=None))(X, LOGITS, REAL, kernels=KERNELS[kind])


def one(kind, expert, x):
  """Returns what an expert computes of one token."""
  if kind == 'linear':
    return x @ KERNELS[kind]['w'][expert]
  return np.maximum(x @ KERNELS[kind]['wi'][expert], 0) @ KERNELS[kind]['wo'][expert]


def expected(kind, capacity):
  """Returns the output where each row is a group, first come, first served; and the tokens dropped in each."""
  gates = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
  y, dropped = np.zeros((ROWS, LENGTH, OUT)), np.zeros(ROWS)
  for row in range(ROWS):
    taken = np.zeros(EXPERTS, int)
    for token in np.flatnonzero(REAL[row]):
      expert = LOGITS[row, token].argmax()
      if taken[expert] < capacity:
        taken[expert] += 1
        y[row, token] = gates[row, token, expert] * one(kind, expert, X[row, token])
      else:
        dropped[row] += 1
  return y, dropped


@pytest.mark.parametrize('kind', KERNELS)
@pytest.mark.parametrize('mesh', [(1, 1, 1), (2, 2, 2)], ids=str)
def test_slots(kind, mesh):
  y, dropped = expected(kind, 1)
  assert dropped.sum() > 0
  found, statistics = applied(kind, layout(*mesh), expert_capacity=1, sequences_per_group=1)
  np.testing.assert_allclose(found, y, atol=1e-5)
  np.testing.assert_array_equal(statistics.dropped, dropped)
  np.testing.assert_array_equal(statistics.tokens, REAL.sum(-1))


@pytest.mark.parametrize('kind', KERNELS)
@pytest.mark.parametrize('fields', [dict(eval_capacity_factor=None), dict(expert_capacity=1, never_drop=True)], ids=str)
def test_without_dropping(kind, fields):
  found, statistics = applied(kind, **fields)
  np.testing.assert_allclose(found, expected(kind, LENGTH)[0], atol=1e-5)
  assert statistics.dropped.tolist() == [0]  # one group


def test_a_group_never_crosses_a_shard():
  with pytest.raises(ConfigError, match=r'sequences_per_group is 4, but each of the 8 .* holds 1 rows; .* divide 1\.'):
    applied('mlp', layout(4, 2), sequences_per_group=4)


def test_network_drops_hidden_units():
  how = Experts(model_config(), layout(), True, 'mlp', OUT)
  keep = np.array([2.0, 0.0, 0.0, 2.0, 0.0, 0.0], np.float32)
  kernels = {name: kernel[1] for name, kernel in KERNELS['mlp'].items()}
  found = network(how, X[0], lambda rows, name: rows @ kernels[name], keep)
  np.testing.assert_allclose(found, np.maximum(X[0] @ kernels['wi'], 0) * keep @ kernels['wo'], atol=1e-5)
