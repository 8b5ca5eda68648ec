"""The two dispatch forms are the same function, for every router, whatever the logits, masks and ties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from switch_jax.config import MoeConfig
from switch_jax.model import dispatch
from switch_jax.model.routing import route

# (groups, tokens of a group, experts, capacity); the list is short since every entry is compiled.
SHAPES = [(1, 8, 4, 2), (2, 5, 3, 1), (1, 6, 2, 6), (3, 4, 5, 3)]
WIDTH = 4

ROUTERS = {
  'top1': dict(),
  'top1_by_probability': dict(slot_priority='probability', decoder_layers=()),
  'top2_all': dict(router='top2', second_policy_eval='all'),
  'top2_threshold': dict(router='top2', second_policy_eval='threshold', normalize_gates=False),
  'topk': dict(router='topk', router_scores='sigmoid'),
  'no_token_left_behind': dict(router='no_token_left_behind', num_choices=2),
  'expert_choice': dict(router='expert_choice', decoder_layers=()),
}


def experts_of(slots, weights):
  """Each expert multiplies its slots `[e, n, d]` by its own matrix and bends them."""
  return jnp.tanh(jnp.einsum('end,edf->enf', slots, weights))


def by(mover, x, routing, weights, capacity):
  send, receive = mover(routing, len(weights), capacity)
  return receive(experts_of(send(x.reshape(-1, WIDTH)), weights)).reshape(x.shape)


def by_slots(x, routing, weights, capacity):
  return by(dispatch.by_index, x, routing, weights, capacity)


def by_einsum(x, routing, weights, capacity):
  return by(dispatch.by_one_hot, x, routing, weights, capacity)


@functools.cache
def compiled(router, shape):
  """Returns the jitted comparison: outputs and gradients of both forms, and the routing."""
  _, _, num_experts, capacity = shape
  config = MoeConfig(num_experts=num_experts, **ROUTERS[router])

  def loss(form, x, logits, real, weights):
    routing, _ = route(logits, real, config, capacity, deterministic=True)
    y = form(x, routing, weights, capacity)
    return jnp.sum(jnp.sin(y) * jnp.arange(1, y.size + 1).reshape(y.shape) / y.size), (y, routing)

  def both(x, logits, real, weights):
    results = []
    for form in (by_slots, by_einsum):
      function = jax.value_and_grad(functools.partial(loss, form), argnums=(0, 1, 3), has_aux=True)
      (_, (y, routing)), gradients = function(x, logits, real, weights)
      results.append((y, gradients))
    return *results, routing

  return jax.jit(both)


@pytest.mark.parametrize('router', ROUTERS)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_slots_equal_einsum(router, shape, data):
  groups, tokens, num_experts, capacity = shape
  # Few distinct values make many ties; whole columns of one value make collapse and empty experts.
  values = st.sampled_from([-2.0, -1.0, 0.0, 0.0, 0.5, 3.0])
  logits = data.draw(hnp.arrays(np.float32, (groups, tokens, num_experts), elements=values))
  real = data.draw(hnp.arrays(bool, (groups, tokens)))
  random = np.random.default_rng(0)
  x = random.normal(size=(groups, tokens, WIDTH)).astype(np.float32)
  weights = random.normal(size=(num_experts, WIDTH, WIDTH)).astype(np.float32)
  slots, einsum, routing = compiled(router, shape)(x, logits, real, weights)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), slots, einsum)

  taken = np.asarray(routing.slot) >= 0
  assert not taken[~real].any()
  np.testing.assert_array_equal(np.asarray(slots[0])[~taken.any(-1)], 0)  # dropped tokens get nothing
  for group in range(groups):
    pairs = np.stack([routing.expert[group][taken[group]], routing.slot[group][taken[group]]], axis=-1)
    assert len(np.unique(pairs, axis=0)) == len(pairs)  # no slot holds two tokens
  assert np.asarray(routing.slot).max() < capacity
  # Exactly the capacity is kept where more tokens want an expert.
  if router.startswith('top1'):
    wanted = np.stack(
      [np.bincount(e[r], minlength=num_experts) for e, r in zip(routing.expert[..., 0], real, strict=True)]
    )
    kept = np.stack(
      [np.bincount(e[t], minlength=num_experts) for e, t in zip(routing.expert[..., 0], taken[..., 0], strict=True)]
    )
    np.testing.assert_array_equal(kept, np.minimum(wanted, capacity))


def test_gradients_of_empty_slots_do_not_leak():
  """Empty slots hold a copy of some token; nothing of what the experts make of it may come back."""
  config = MoeConfig(num_experts=2)
  logits = jnp.array([[[5.0, 0.0], [5.0, 0.0]]])  # expert 1 stays empty
  routing, _ = route(logits, jnp.ones((1, 2), bool), config, 2, deterministic=True)
  weights = jnp.ones((2, WIDTH, WIDTH))
  x = jnp.arange(2.0 * WIDTH).reshape(1, 2, WIDTH) / 10

  def loss(x, weights):
    return jnp.sum(by_slots(x, routing, weights, 2))

  to_x, to_weights = jax.grad(loss, argnums=(0, 1))(x, weights)
  np.testing.assert_array_equal(to_weights[1], 0)
  assert np.abs(to_x).min() > 0
