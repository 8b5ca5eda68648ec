"""Decoding against what a full forward pass says: greedy, samples, and beams against exhaustive search."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.config import ConfigError, DecodingConfig, MeshConfig, ModelConfig, MoeConfig
from switch_jax.inference.decoding import Ids, chosen_from, length_penalty, make_decode
from switch_jax.inference.scoring import make_score
from switch_jax.model import abstract_parameters
from switch_jax.parallel import Layout, make_mesh
from switch_jax.plan.collectives import collectives

BATCH, INPUTS, LENGTH = 8, 5, 4
IDS = Ids(size=6, eos=1)  # of 8 rows in the embedding
MODEL = ModelConfig(
  vocab_size=8, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1,
  moe=MoeConfig(num_experts=4, encoder_layers=1, decoder_layers=1, eval_capacity_factor=None),
)  # fmt: skip
DECODER = dataclasses.replace(
  MODEL, num_encoder_layers=0, num_decoder_layers=2, scan_layers=True, prefix_lm=True, positions='rotary'
)
NUMBERS = jnp.arange(BATCH)
PRESENT = jnp.ones(BATCH, bool)
TEXTS = [t for n in range(LENGTH) for t in itertools.product(range(2, IDS.size), repeat=n)]


@functools.cache
def layout(*mesh):
  data, expert, model = mesh or (1, 1, 1)
  config = MeshConfig(data=data, expert=expert, model=model)
  return Layout(make_mesh(config, None, jax.devices()[: data * expert * model]))


@functools.cache
def parameters(where, config=MODEL):
  random = np.random.default_rng(1)
  draw = lambda x: random.normal(0.0 if x.ndim > 1 else 1.5, x.shape[-2] ** -0.5 if x.ndim > 1 else 0.3, x.shape)  # noqa: E731
  return jax.tree.map(
    lambda x: jax.device_put(draw(x).astype(np.float32), x.sharding), abstract_parameters(config, where)
  )


@functools.cache
def inputs():
  tokens = np.random.default_rng(2).integers(1, IDS.size, (BATCH, INPUTS), dtype=np.int32)
  tokens[1, 3:] = tokens[2] = 0
  return tokens


def decode(length=LENGTH, where=None, present=PRESENT, numbers=NUMBERS, config=MODEL, **decoding):
  where = where or layout()
  function = make_decode(config, where, DecodingConfig(**decoding), IDS, length)
  return jax.device_get(function(parameters(where, config), inputs(), present, numbers))


def score(targets, config=MODEL):
  """Returns the log probability of targets `[batch, n]` by full forward passes."""
  return np.asarray(make_score(config, layout())(parameters(layout(), config), inputs(), targets))


@functools.cache
def every_hypothesis():
  """Returns all targets that end in time, `[n, length]`, and their log probabilities `[n, batch]`."""
  targets = np.zeros((len(TEXTS), LENGTH), np.int32)
  for row, text in zip(targets, TEXTS, strict=True):
    row[: len(text) + 1] = [*text, IDS.eos]
  return targets, np.stack([score(np.tile(t, (BATCH, 1))) for t in targets])


def check_scores(decoded, config=MODEL):
  for i in range(decoded.tokens.shape[1]):
    there = np.isfinite(decoded.log_probability[:, i])
    np.testing.assert_allclose(decoded.log_probability[there, i], score(decoded.tokens[:, i], config)[there], atol=1e-4)


@pytest.mark.parametrize('config', [MODEL, DECODER], ids=['encoder', 'decoder-only'])
def test_greedy_takes_the_likeliest_token_of_a_full_pass(config):
  decoded = decode(config=config)
  assert decoded.tokens.shape == (BATCH, 1, LENGTH)
  assert decoded.tokens.max() < IDS.size
  for position in range(LENGTH):
    tried = []
    for token in range(1, IDS.size):
      targets = decoded.tokens[:, 0].copy()
      targets[:, position], targets[:, position + 1 :] = token, 0
      tried.append(score(targets, config))
    best = 1 + np.argmax(tried, axis=0)
    before_end = (decoded.tokens[:, 0, :position] != IDS.eos).all(axis=1)
    np.testing.assert_array_equal(decoded.tokens[before_end, 0, position], best[before_end])
    assert (decoded.tokens[~before_end, 0, position] == 0).all()
  check_scores(decoded, config)
  np.testing.assert_array_equal(decoded.score, decoded.log_probability)


@pytest.mark.parametrize('alpha', [0.0, 0.6])
def test_a_wide_beam_is_exhaustive_search(alpha):
  targets, log_probability = every_hypothesis()
  lengths = (targets > 0).sum(axis=1)
  scores = log_probability / np.asarray(length_penalty(lengths, alpha))[:, None]
  # Wide enough that half of all continuations of the longest hypotheses go on.
  beams = 5 * 4 ** (LENGTH - 1) // 2
  decoded = decode(method='beam', num_beams=beams, length_penalty=alpha)
  order = np.argsort(-scores, axis=0)
  found = decoded.score[:, : len(TEXTS)]
  np.testing.assert_allclose(found, np.take_along_axis(scores, order, axis=0).T, atol=1e-4)
  # Hypotheses whose scores are nearer to each other than the arithmetic is exact may change places.
  np.testing.assert_array_equal(decoded.tokens[:, 0], targets[order[0]])
  there = decoded.tokens[:, : len(TEXTS)]
  np.testing.assert_array_equal((there == IDS.eos).sum(axis=2), 1)


def test_a_narrow_beam_scores_what_it_finds_and_beats_greedy_somewhere():
  decoded, greedy = decode(method='beam', num_beams=3, length_penalty=0.0), decode()
  check_scores(decoded)
  assert (np.diff(decoded.score, axis=1) <= 1e-6).all()
  ended = (greedy.tokens == IDS.eos).any(axis=2)[:, 0]
  assert (decoded.score[ended, 0] > greedy.score[ended, 0] - 1e-4).all()


def test_the_beams_of_a_decoder_only_model_begin_with_its_inputs():
  decoded = decode(config=DECODER, where=layout(2, 2, 2), **METHODS['beam'])
  check_scores(decoded, DECODER)
  assert (decoded.tokens[:, 0] != decoded.tokens[:, 1]).any(axis=1).all()


def test_hypotheses_that_are_cut_off_come_after_those_that_ended():
  decoded = decode(length=2, method='beam', num_beams=4)
  ended = (decoded.tokens == IDS.eos).any(axis=2)
  assert ended.any()
  assert (~ended).any()
  assert (np.diff(ended.astype(int), axis=1) <= 0).all()
  assert np.isfinite(decoded.score).all()


def test_fewer_hypotheses_than_beams_are_minus_infinity():
  decoded = decode(length=1, method='beam', num_beams=8)
  assert (np.isfinite(decoded.log_probability).sum(axis=1) == IDS.size - 1).all()
  assert (decoded.tokens[~np.isfinite(decoded.log_probability)] == 0).all()


METHODS = {
  'greedy': dict(),
  'sample': dict(method='sample', temperature=1.5, top_k=4, top_p=0.9, seed=3),
  'beam': dict(method='beam', num_beams=3),
}


@pytest.mark.parametrize('method', METHODS)
def test_every_mesh_decodes_the_same(method):
  one, many = (decode(where=where, **METHODS[method]) for where in (layout(), layout(2, 2, 2)))
  np.testing.assert_array_equal(one.tokens, many.tokens)
  np.testing.assert_allclose(one.log_probability, many.log_probability, atol=1e-4)
  check_scores(one)


def test_neither_experts_nor_the_cache_are_gathered():
  where, config = layout(2, 4, 1), dataclasses.replace(MODEL, emb_dim=64, mlp_dim=512)
  function = make_decode(config, where, DecodingConfig(method='beam', num_beams=2), IDS, 32)
  tokens = jax.ShapeDtypeStruct((BATCH, INPUTS), jnp.int32, sharding=where.batch_sharding())
  row = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
  present = jax.ShapeDtypeStruct((BATCH,), bool)
  text = function.lower(abstract_parameters(config, where), tokens, present, row).compile().as_text()
  largest = max(c.bytes for c in collectives(text))
  # What drop-free layers exchange: the encoder's tokens, gathered over the experts' axis.
  assert largest <= BATCH * INPUTS * config.emb_dim * 4
  assert largest < config.emb_dim * config.mlp_dim * 4


def test_samples_belong_to_the_example_and_the_seed():
  sample = dict(method='sample', temperature=2.0)
  a, b = decode(**sample, seed=1), decode(**sample, seed=2)
  assert (a.tokens != b.tokens).any()
  same = np.array([0, 0, 0, 0, 0, 0, 0, 0])
  alike = decode(**sample, seed=1, numbers=jnp.asarray(same))
  np.testing.assert_array_equal(alike.tokens[0], a.tokens[0])
  assert (alike.tokens[1:] != a.tokens[1:]).any()


def test_samples_have_the_models_frequencies():
  numbers = np.arange(BATCH)
  drawn = [decode(length=1, method='sample', numbers=jnp.asarray(numbers + BATCH * i)).tokens for i in range(60)]
  counts = np.stack([(np.stack(drawn)[..., 0, 0] == t).mean(axis=0) for t in range(1, IDS.size)])
  expected = np.stack([np.exp(score(np.full((BATCH, 1), t, np.int32))) for t in range(1, IDS.size)])
  expected /= expected.sum(axis=0)
  assert np.abs(counts - expected).max() < 4 * np.sqrt(0.25 / 60)


def test_top_k_and_top_p_leave_the_likeliest():
  logits = jnp.log(jnp.array([0.1, 0.4, 0.3, 0.2]))
  kept = lambda *a: np.isfinite(chosen_from(logits, *a)).tolist()  # noqa: E731
  assert kept(None, None) == [True] * 4
  assert kept(2, None) == [False, True, True, False]
  assert kept(None, 0.5) == [False, True, True, False]
  assert kept(None, 0.35) == [False, True, False, False]
  assert kept(None, 0.95) == [True] * 4
  assert kept(3, 0.6) == [False, True, True, False]


def test_rows_that_fill_the_batch_are_left_empty():
  present = jnp.arange(BATCH) < 3
  for method in METHODS.values():
    some, every = decode(present=present, **method), decode(**method)
    np.testing.assert_array_equal(some.tokens[:3], every.tokens[:3])
    assert (some.tokens[3:] == 0).all()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(method='beams'), "Did you mean 'beam'?"),
    (dict(top_k=3), "it is for method 'sample', and the method is 'greedy'"),
    (dict(method='sample', top_p=1.5), 'at most 1'),
    (dict(method='sample', temperature=0), 'must be greater than 0'),
  ],
)
def test_wrong_settings_are_named(fields, message):
  with pytest.raises(ConfigError, match=message.replace('?', r'\?')):
    DecodingConfig(**fields)
