"""Entropies that can be worked out by hand."""

import collections
import math

import numpy as np
import pytest

from switch_jax.data.yardsticks import target_entropies

SENTINELS = range(90, 100)


def batch(*rows):
  """Returns a batch of rows of target tokens, 0 being padding."""
  targets = np.array(rows, np.int32)
  previous = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
  real = (targets != 0).astype(np.int32)
  return {'decoder_target_tokens': targets, 'decoder_input_tokens': previous, 'decoder_loss_weights': real}


def test_sentinels_eos_and_padding_are_not_counted():
  entropies = target_entropies([batch([99, 5, 6, 98, 7, 8, 1, 0, 0]), batch([99, 5, 6, 98, 7, 8, 1, 0, 0])], SENTINELS)
  assert entropies.num_tokens == 8
  assert entropies.unigram == pytest.approx(math.log(4))
  # Each of 99, 5, 98, 7 is always followed by the same token: knowing it, there is nothing left to learn.
  assert entropies.bigram == pytest.approx(0, abs=1e-12)


def test_the_token_before_a_sentinel_is_no_context_but_the_sentinel_is():
  # After 99 come 5 and 6, each once; after 5 always 7; after 6 always 7.
  entropies = target_entropies([batch([99, 5, 7, 1], [99, 6, 7, 1])], SENTINELS)
  assert entropies.unigram == pytest.approx(1.5 * math.log(2))  # 7 twice, 5 and 6 once
  assert entropies.bigram == pytest.approx(0.5 * math.log(2))  # half of the tokens come after 99


def test_bigram_is_the_mean_of_the_conditional_entropies():
  tokens = np.random.default_rng(0).integers(2, 6, (4, 500))
  entropies = target_entropies([batch(*tokens)], SENTINELS)
  previous = batch(*tokens)['decoder_input_tokens']
  pairs = collections.Counter(zip(previous.ravel(), tokens.ravel(), strict=True))
  contexts = collections.Counter(previous.ravel())
  loss = -sum(count * math.log(count / contexts[pair[0]]) for pair, count in pairs.items())
  assert entropies.bigram == pytest.approx(loss / tokens.size)
  assert entropies.bigram < entropies.unigram <= math.log(4)


def test_no_text_is_an_error():
  with pytest.raises(ValueError, match='no text tokens'):
    target_entropies([batch([99, 1, 0])], SENTINELS)
  with pytest.raises(ValueError, match='no text tokens'):
    target_entropies([], SENTINELS)
