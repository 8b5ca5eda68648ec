"""Logits of one forward pass: what they depend on, and what is refused; `tests/interop` compares them with others."""

import dataclasses

import jax
import numpy as np
import pytest

from switch_jax.config import ConfigError
from switch_jax.inference import compute_logits, make_score, with_capacity
from switch_jax.parallel import Layout
from tests.inference.written_checkpoints import DECODER, MODEL, random_parameters

CONFIG = with_capacity(MODEL, None)
TOKENS = np.random.default_rng(3).integers(3, 259, (3, 6), dtype=np.int32)


@pytest.fixture(scope='module')
def logits_of():
  """Returns the function from inputs and targets to logits."""
  params = random_parameters(10)
  return lambda inputs, targets: np.asarray(compute_logits(CONFIG, params, inputs, targets))


def test_a_target_depends_on_all_inputs_and_on_targets_before_it(logits_of):
  logits = logits_of(TOKENS, TOKENS)
  assert (logits.shape, logits.dtype) == ((3, 6, CONFIG.vocab_size), np.float32)
  changed = TOKENS.copy()
  changed[:, 3] = 100
  later = logits_of(TOKENS, changed)
  np.testing.assert_allclose(later[:, :3], logits[:, :3], atol=1e-5)
  assert np.abs(later[:, 3] - logits[:, 3]).max() > 1e-2
  assert np.abs(logits_of(changed, TOKENS)[:, 0] - logits[:, 0]).max() > 1e-3


def test_padding_and_other_rows_change_nothing(logits_of):
  logits = logits_of(TOKENS, TOKENS)
  padded = np.pad(TOKENS[:1], ((0, 0), (0, 2)))
  np.testing.assert_allclose(logits_of(padded, TOKENS[:1]), logits[:1], atol=1e-5)


def test_scores_are_made_of_these_logits(logits_of):
  inputs = np.pad(TOKENS, ((0, 0), (1, 0)))[:, :-1]
  each = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits_of(TOKENS, inputs))), TOKENS[..., None], axis=-1)
  score = make_score(CONFIG, Layout.single_device())(random_parameters(10), TOKENS, TOKENS)
  np.testing.assert_allclose(score, each[..., 0].sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
  ('inputs', 'targets', 'message'),
  [
    ([1, 2], [[1]], r'encoder_input_tokens has the shape \(2,\); it must be \[batch, length\]'),
    ([[1]], [[[1]]], r'decoder_input_tokens has the shape \(1, 1, 1\)'),
    ([[1]], [[3, 264]], r'decoder_input_tokens holds tokens from 3 to 264; the model knows 0 to 263'),
    ([[-1, 5]], [[1]], r'encoder_input_tokens holds tokens from -1 to 5'),
    (
      [[1], [2]],
      [[1]],
      'the encoder has 2 rows and the decoder 1; they must be the same examples',
    ),
  ],
)
def test_wrong_tokens(logits_of, inputs, targets, message):
  with pytest.raises(ConfigError, match=message):
    logits_of(np.array(inputs), np.array(targets))


def test_a_decoder_only_model_has_no_inputs_and_a_prefix_lm_a_prefix():
  config = dataclasses.replace(with_capacity(DECODER, None), prefix_lm=True)
  params, prefix = random_parameters(10, config), np.tile(np.arange(6) < 3, (3, 1)).astype(np.int32)
  changed = TOKENS.copy()
  changed[:, 2] = 100
  first, second = (np.asarray(compute_logits(config, params, None, tokens, prefix)) for tokens in (TOKENS, changed))
  assert (np.abs(first - second).max(axis=-1) > 1e-5).all(), 'the prefix is seen from its beginning on'
  with pytest.raises(ConfigError, match='decoder_causal_attention is None, and the model has no encoder and prefix_lm'):
    compute_logits(config, params, None, TOKENS)
  with pytest.raises(
    ConfigError, match=r'encoder_input_tokens is given, and the model has no encoder .*; leave it None'
  ):
    compute_logits(config, params, TOKENS, TOKENS, prefix)
