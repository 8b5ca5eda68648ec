"""Evaluation adds up in float64 and divides once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.model.losses import RouterSums, TokenSums
from switch_jax.training.evaluation import evaluate
from switch_jax.training.sums import Sums


class Batches(list):
  groups = ('de', 'fr')


def step(params, batch):
  """Returns sums of a batch `(tokens, nats)`; every router token wants the expert that the batch names."""
  tokens, nats, expert = batch
  targets = TokenSums(*(jnp.float32(x) for x in (tokens, params * nats, 0.0, tokens / 2, tokens, nats)))
  load = jax.nn.one_hot(expert, 3) * tokens
  zero = jnp.float32(0)
  router = RouterSums(jnp.float32(1), jnp.float32(tokens), load, jnp.float32(1), zero, zero, zero)
  groups = {'tokens': jnp.array([tokens, 0.0]), 'cross_entropy': jnp.array([nats, 0.0])}
  return Sums(targets, {'encoder_1': router}, groups=groups)


def test_batches_weigh_by_their_tokens():
  result = evaluate(step, 2.0, Batches([(10, 30.0, 0), (30, 10.0, 2)]))
  assert {name: result.metrics[name] for name in ('cross_ent_loss', 'cross_ent_loss_text', 'accuracy')} == {
    'cross_ent_loss': 2.0, 'cross_ent_loss_text': 1.0, 'accuracy': 0.5
  }  # fmt: skip
  assert result.metrics['target_tokens'] == 40
  assert result.metrics['fraction_dropped'] == 2 / 40
  assert (result.metrics['cross_ent_loss/de'], result.metrics['target_tokens/de']) == (1.0, 40.0)
  assert 'cross_ent_loss/fr' not in result.metrics
  assert {type(value) for value in result.metrics.values()} == {float}
  np.testing.assert_array_equal(result.expert_tokens['encoder_1'], [10, 0, 30])
  assert 'loss' not in result.metrics


def test_sums_do_not_lose_what_float32_would():
  """2 ** 24 + 1 is no float32."""
  result = evaluate(step, 1.0, Batches([(2**24, 0.0, 0), (1, 0.0, 0)]))
  assert result.metrics['target_tokens'] == 2**24 + 1


def test_no_batches():
  with pytest.raises(ValueError, match='no batches'):
    evaluate(step, 1.0, [])
