"""Log probabilities of targets, against logits that are known; and capacities."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from switch_jax.inference import make_score, scoring, with_capacity
from switch_jax.parallel import Layout
from tests.inference.written_checkpoints import MODEL, random_parameters

# Log probabilities of three tokens at each position of two rows.
PROBABILITIES = np.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], [[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]]])


def test_the_score_is_the_sum_over_the_targets_and_padding_counts_nothing(monkeypatch):
  """A stand-in for the model has these probabilities, up to the constant that logits leave open."""
  given = {}

  class Model:
    def __init__(self, config, layout):
      pass

    def apply(self, variables, batch):
      given.update(batch)
      return jnp.log(PROBABILITIES) + 7.0, {}

  monkeypatch.setattr(scoring, 'Transformer', Model)
  inputs, targets = jnp.array([[5], [6]]), jnp.array([[2, 1], [1, 0]])
  found = scoring.score_targets(MODEL, Layout.single_device(), {}, inputs, targets)
  np.testing.assert_allclose(found, np.log([0.25 * 0.1, 0.3]), rtol=1e-5)
  np.testing.assert_array_equal(given['encoder_input_tokens'], inputs)
  np.testing.assert_array_equal(given['decoder_input_tokens'], [[0, 2], [0, 1]])  # shifted by the start symbol


def test_a_capacity_of_a_model():
  config = dataclasses.replace(MODEL, moe=dataclasses.replace(MODEL.moe, sequences_per_group=1, expert_capacity=3))
  tight = with_capacity(config, 0.5)
  assert (tight.moe.eval_capacity_factor, tight.moe.expert_capacity, tight.moe.sequences_per_group) == (0.5, None, 1)
  free = with_capacity(config, None)
  assert (free.moe.eval_capacity_factor, free.moe.expert_capacity, free.moe.sequences_per_group) == (None, None, None)
  assert with_capacity(dataclasses.replace(MODEL, moe=None), 1.0).moe is None


def test_scores_at_a_capacity_differ_from_those_without_dropping():
  random, params = np.random.default_rng(2), random_parameters(10)
  inputs, targets = (random.integers(3, 259, (4, length), dtype=np.int32) for length in (6, 4))
  free, tight = (
    np.asarray(make_score(with_capacity(MODEL, factor), Layout.single_device())(params, inputs, targets))
    for factor in (None, 0.5)
  )
  assert free.shape == (4,)
  assert free.max() < 0
  assert np.abs(tight - free).max() > 1e-3
