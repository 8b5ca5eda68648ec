"""Every token through its experts: the forms against a loop over tokens, their gradients, and the rows of blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax import kernels
from switch_jax.kernels import drop_free, grouped_product
from switch_jax.parallel import Layout

TOKENS, CHOICES, EXPERTS, WIDTH, HIDDEN = 24, 2, 3, 8, 16
SINGLE = Layout.single_device()


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  monkeypatch.setattr(grouped_product, 'INTERPRET', True)


def inputs():
  keys = jax.random.split(jax.random.key(0), 5)
  x = jax.random.normal(keys[0], (TOKENS, WIDTH))
  # No token names an expert twice; the last number: not here.
  expert = jnp.argsort(jax.random.uniform(keys[1], (TOKENS, EXPERTS + 1)), axis=-1)[:, :CHOICES].astype(jnp.int32)
  gate = jnp.where(expert < EXPERTS, jax.random.uniform(keys[2], (TOKENS, CHOICES)), 0.0)
  wi = jax.random.normal(keys[3], (EXPERTS, WIDTH, HIDDEN))
  return x, expert, gate, {'wi': wi, 'wo': jax.random.normal(keys[4], (EXPERTS, HIDDEN, WIDTH))}


def network(rows, product, choice):
  return product(jax.nn.relu(product(rows, 'wi')) * (1 + choice[:, None] % 5), 'wo')


def run(form, x, gate, weights, expert):
  """As `form` computes it; `few`: as `blocks` does so few tokens, which are too many for it otherwise."""
  layout = Layout(SINGLE.mesh, kernels=(('drop_free', 'blocks' if form == 'few' else form),))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(drop_free, 'FEW_TOKENS', TOKENS if form == 'few' else TOKENS - 1)
    return kernels.apply_to_all(layout, x, expert, gate, network, weights, out_dim=WIDTH, block=4)


def token_by_token(x, gate, weights, expert):
  rows = []
  for token in range(TOKENS):
    total = jnp.zeros(WIDTH)
    for choice in range(CHOICES):
      e = int(expert[token, choice])
      if e < EXPERTS:
        number = token * CHOICES + choice
        hidden = jax.nn.relu(x[token] @ weights['wi'][e]) * (1 + number % 5)
        total += gate[token, choice] * (hidden @ weights['wo'][e])
    rows.append(total)
  return jnp.stack(rows)


@pytest.mark.parametrize('form', ['ragged', 'blocks', 'few', 'grouped'])
def test_output_and_gradients_are_those_of_single_tokens(form):
  x, expert, gate, weights = inputs()

  def loss(function):
    return lambda x, gate, weights: jnp.sum(jnp.sin(function(x, gate, weights)))

  expected = jax.value_and_grad(loss(lambda *a: token_by_token(*a, expert)), argnums=(0, 1, 2))(x, gate, weights)
  chosen = jax.jit(jax.value_and_grad(loss(lambda *a: run(form, *a, expert)), argnums=(0, 1, 2)))
  value, (to_x, to_gate, to_weights) = chosen(x, gate, weights)
  to_gate = jnp.where(expert < EXPERTS, to_gate, 0.0)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-4), (value, (to_x, to_gate, to_weights)), expected
  )


@pytest.mark.parametrize('form', ['ragged', 'blocks', 'few', 'grouped'])
def test_experts_elsewhere_give_nothing(form):
  x, expert, gate, weights = inputs()
  y = run(form, x, jnp.zeros_like(gate), weights, jnp.full_like(expert, EXPERTS))
  np.testing.assert_array_equal(y, np.zeros((TOKENS, WIDTH)))


def test_decoding_computes_at_most_eight_rows_a_token():
  block = drop_free.block_size(128, 128)
  assert drop_free.num_rows(128, 128, block) <= 8 * 128
  expert = jax.random.randint(jax.random.key(0), (128, 1), 0, 128)
  index, owner = drop_free.block_index(expert, 128, block)
  assert index.choice_of.size <= 8 * 128
  row = np.asarray(index.of_choice)[:, 0]
  np.testing.assert_array_equal(np.asarray(owner)[row // block], np.asarray(expert)[:, 0])  # each row in its block
  assert len(set(row)) == 128


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_forms_are_equal_where_one_expert_has_all_tokens(dtype):
  x, expert, gate, weights = inputs()
  expert, gate = jnp.ones_like(expert), gate.astype('float32') + 0.1
  x, weights = x.astype(dtype), jax.tree.map(lambda w: w.astype(dtype), weights)
  found = {}
  for form in ('ragged', 'blocks', 'few', 'grouped'):
    y, back = jax.vjp(lambda *a: run(form, *a, expert), x, gate, weights)  # noqa: B023
    found[form] = jax.tree.map(lambda a: np.asarray(a, np.float32), (y, back(jnp.ones_like(y))))
  tolerance = 1e-5 if dtype == 'float32' else 0.03
  for form in ('blocks', 'grouped'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * abs(b).max()), found[form], found['ragged']
    )
  assert not found['grouped'][1][2]['wi'][[0, 2]].any()


@pytest.mark.parametrize(
  ('choices', 'form', 'wanted', 'block'),
  [
    (128, 'blocks', None, 8), (8192, 'blocks', None, 128), (8192, 'blocks', 3, 3), (128, 'grouped', None, 8),
    (1024, 'grouped', None, 128), (8192, 'grouped', None, 256), (10**6, 'grouped', None, 512),
    (8192, 'grouped', 3, 256), (8192, 'grouped', 64, 64),
  ],
)  # fmt: skip
def test_the_size_of_a_block(choices, form, wanted, block):
  assert drop_free.block_size(choices, 4 if choices > 128 else 128, form, wanted) == block


def test_blocks_hold_the_worst_case():
  for expert in (jnp.zeros((16, 1), jnp.int32), jnp.arange(16)[:, None] % 5, jnp.full((16, 1), 5)):
    index, owner = drop_free.block_index(expert.astype(jnp.int32), 5, 4)
    wanted = np.asarray(expert)[:, 0] < 5
    assert (np.asarray(index.of_choice)[wanted, 0] < index.choice_of.size).all()
    assert (np.asarray(owner) == 5).sum() == len(owner) - sum(-(-n // 4) for n in np.bincount(expert[wanted, 0]))
