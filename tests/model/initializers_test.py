"""The distributions of initial values, told by their standard deviations and bounds."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from switch_jax.config import ModelConfig
from switch_jax.model import initializers

PAPER = ModelConfig(
  vocab_size=8, emb_dim=8, num_heads=2, head_dim=16, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1,
  init_scale=0.4,
)  # fmt: skip
RELEASED = dataclasses.replace(PAPER, init='released')
TRUNCATED = 0.8796  # what truncation at two sigma leaves of the standard deviation
FAN_IN, SIGMA = 64, math.sqrt(0.4 / 64)


def draw(init, shape=(4, FAN_IN, 100)):
  return np.asarray(init(jax.random.key(0), shape))


@pytest.mark.parametrize('kind', ['query', 'attention', 'mlp', 'expert', 'router', 'logits'])
def test_paper(kind):
  """Truncated normal of variance s / fan_in before truncation; leading axes only stack."""
  sigma = SIGMA / 4 if kind == 'query' else SIGMA
  values = draw(initializers.kernel(PAPER, kind))
  np.testing.assert_allclose(values.std(), TRUNCATED * sigma, rtol=0.02)
  assert 1.9 * sigma < np.abs(values).max() <= 2 * sigma * 1.0001
  assert not np.array_equal(values[0], values[1])


@pytest.mark.parametrize(
  ('kind', 'sigma', 'bound'),
  [
    ('query', SIGMA / 4, None),
    ('attention', SIGMA, None),
    ('expert', SIGMA, None),
    ('router', 0.02, None),
    ('mlp', SIGMA, 2 / TRUNCATED),
    ('logits', SIGMA, 2 / TRUNCATED),
  ],
)
def test_released(kind, sigma, bound):
  values = draw(initializers.kernel(RELEASED, kind))
  np.testing.assert_allclose(values.std(), sigma, rtol=0.02)
  highest = np.abs(values).max() / sigma
  assert highest > 3 if bound is None else 0.95 * bound < highest <= 1.001 * bound


@pytest.mark.parametrize('config', [PAPER, RELEASED], ids=['paper', 'released'])
def test_embedding_is_standard_normal(config):
  values = draw(initializers.embedding(config), (200, 100))
  np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=0.02)


def test_relative_positions_are_uniform_of_the_average_fan():
  values = draw(initializers.relative_position_bias(PAPER), (100, 300))
  bound = math.sqrt(3 * 0.4 / 200)
  assert 0.99 * bound < np.abs(values).max() <= bound
  np.testing.assert_allclose(values.std(), bound / math.sqrt(3), rtol=0.02)


def test_truncated_normal_is_not_rescaled():
  values = draw(initializers.truncated_normal(3.0), (200, 100))
  np.testing.assert_allclose(values.std(), 3 * TRUNCATED, rtol=0.02)
  assert np.abs(values).max() <= 6.001
