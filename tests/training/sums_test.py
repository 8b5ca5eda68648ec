"""Sums of a pass, and the metrics they are divided into, against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.config import DistillationConfig, LossConfig, ModelConfig, MoeConfig
from switch_jax.distillation.soft_targets import soft_targets
from switch_jax.model.routing import RoutingStatistics
from switch_jax.training.sums import Objective, Sums

ROWS, LENGTH, VOCAB, SPECIAL = 4, 3, 6, (4, 5)
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(ROWS, LENGTH, VOCAB)).astype(np.float32)
TEACHER = RANDOM.normal(size=(ROWS, LENGTH, VOCAB)).astype(np.float32)
BATCH = {
  'decoder_target_tokens': np.array([[0, 4, 2], [1, 1, 5], [3, 2, 1], [0, 0, 0]], np.int32),
  'decoder_loss_weights': np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 0, 0]], np.int32),
  'decoder_group_ids': np.array([[1, 1, 1], [2, 2, 2], [1, 0, 1], [0, 0, 0]], np.int32),
}
# By routing group: tokens, tokens (twice) and probability of each expert, dropped, entropy, squared log-partition.
STATISTICS = {
  'encoder_1': RoutingStatistics(
    *(
      np.array(x, np.float32)
      for x in ([4, 0], [[3, 1], [0, 0]], [[3, 1], [0, 0]], [[2, 2], [0, 0]], [1, 0], [2, 0], [8, 0])
    )
  ),
  'decoder_1': RoutingStatistics(
    *(
      np.array(x, np.float32)
      for x in ([2, 4], [[2, 0], [4, 0]], [[2, 0], [4, 0]], [[1, 1], [3, 1]], [0, 3], [1, 1], [4, 8])
    )
  ),
}
MODEL = ModelConfig(
  vocab_size=VOCAB, emb_dim=4, num_heads=2, head_dim=2, mlp_dim=4, num_encoder_layers=2, num_decoder_layers=2,
  moe=MoeConfig(num_experts=2, aux_loss_factor=0.5, router_z_loss_factor=0.25),
)  # fmt: skip
OBJECTIVE = Objective(MODEL, LossConfig(z_loss=0.1), special_tokens=SPECIAL)
TAUGHT = dataclasses.replace(
  OBJECTIVE, distillation=DistillationConfig(teacher_path='x', soft_weight=0.75, temperature=2.0)
)
WEIGHTS = BATCH['decoder_loss_weights']
PARTITION = np.log(np.exp(LOGITS.astype(np.float64)).sum(-1))
NATS = PARTITION - np.take_along_axis(LOGITS, BATCH['decoder_target_tokens'][..., None], -1)[..., 0]


def sums_of(rows=slice(None), groups=slice(None), objective=OBJECTIVE, **options):
  batch = {name: x[rows] for name, x in BATCH.items()}
  statistics = jax.tree.map(lambda x: jnp.asarray(x[groups]), STATISTICS)
  return objective.sums(jnp.asarray(LOGITS[rows]), batch, statistics, **options)


@pytest.fixture(scope='module')
def taught():
  targets = soft_targets(jnp.asarray(TEACHER), 2.0)
  return sums_of(objective=TAUGHT, soft_targets=targets)


def test_metrics_are_means_over_the_target_tokens():
  text = WEIGHTS * ~np.isin(BATCH['decoder_target_tokens'], SPECIAL)
  expected = {
    'cross_ent_loss': (WEIGHTS * NATS).sum() / 7,
    'cross_ent_loss_text': (text * NATS).sum() / 6,
    'accuracy': (WEIGHTS * (LOGITS.argmax(-1) == BATCH['decoder_target_tokens'])).sum() / 7,
    'target_tokens': 7,
    'fraction_dropped/encoder_1': 1 / 4, 'fraction_dropped/decoder_1': 3 / 6, 'fraction_dropped': 3 / 8,
    'expert_load_max_over_mean/encoder_1': 1.5, 'expert_load_max_over_mean/decoder_1': 2.0,
    'expert_load_max_over_mean': 2.0,
    'experts_unused/encoder_1': 0, 'experts_unused/decoder_1': 1, 'experts_unused': 1,
  }  # fmt: skip
  assert WEIGHTS.sum() == 7
  assert text.sum() == 6
  assert {name: float(value) for name, value in sums_of().metrics().items()} == pytest.approx(expected, rel=1e-5)


def test_the_loss_has_the_router_losses_and_z_loss():
  metrics = sums_of().metrics(OBJECTIVE)
  # Experts times the product of shares and mean probabilities, averaged over the groups that have tokens.
  balance = {
    'encoder_1': 2 * (3 / 4 * 2 / 4 + 1 / 4 * 2 / 4),
    'decoder_1': (2 * (1 * 1 / 2) + 2 * (1 * 3 / 4)) / 2,
  }
  z_loss = {'encoder_1': 8 / 4, 'decoder_1': 12 / 6}
  for layer in balance:
    assert float(metrics[f'load_balance_loss/{layer}']) == pytest.approx(balance[layer])
    assert float(metrics[f'router_z_loss/{layer}']) == pytest.approx(z_loss[layer])
  of_logits = 0.1 * (WEIGHTS * PARTITION**2).sum() / 7
  assert float(metrics['z_loss']) == pytest.approx(of_logits, rel=1e-5)
  expected = (WEIGHTS * NATS).sum() / 7 + of_logits + 0.5 * sum(balance.values()) + 0.25 * sum(z_loss.values())
  assert float(metrics['loss']) == pytest.approx(expected, rel=1e-5)
  assert float(metrics['router_entropy/encoder_1']) == 0.5
  np.testing.assert_array_equal(metrics['routers']['expert_tokens'], [[6, 0], [3, 1]])  # decoder, encoder
  np.testing.assert_allclose(metrics['routers']['fraction_dropped'], [0.5, 0.25])


def test_halves_add_up_to_the_whole():
  halves = [sums_of(slice(2 * i, 2 * i + 2), slice(i, i + 1), num_groups=2) for i in (0, 1)]
  whole = sums_of(num_groups=2)
  added = jax.tree.map(jnp.add, *halves)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, whole)


def test_a_teacher_is_mixed_in(taught):
  metrics = taught.metrics(TAUGHT)
  log_softmax = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))  # noqa: E731
  student, teacher = log_softmax(LOGITS / 2.0), log_softmax(TEACHER / 2.0)
  soft = -(WEIGHTS * (np.exp(teacher) * student).sum(-1)).sum() / 7
  entropy = -(WEIGHTS * (np.exp(teacher) * teacher).sum(-1)).sum() / 7
  assert float(metrics['soft_cross_ent_loss']) == pytest.approx(soft, rel=1e-5)
  assert float(metrics['teacher_divergence']) == pytest.approx(soft - entropy, rel=1e-4)
  hard = float(metrics['cross_ent_loss'])
  rest = float(sums_of().metrics(OBJECTIVE)['loss']) - hard
  assert float(metrics['loss']) == pytest.approx(0.25 * hard + 0.75 * 4 * soft + rest, rel=1e-5)


def test_groups_that_have_target_tokens_are_named():
  metrics = sums_of(num_groups=3).metrics(groups=('de', 'fr', 'sw'))
  of = lambda group: WEIGHTS * (BATCH['decoder_group_ids'] == group)  # noqa: E731
  assert {name: float(metrics[name]) for name in metrics if name.partition('/')[2] in ('de', 'fr', 'sw')} == (
    pytest.approx(
      {
        'cross_ent_loss/de': (of(1) * NATS).sum() / 5,
        'target_tokens/de': 5,
        'cross_ent_loss/fr': (of(2) * NATS).sum() / 2,
        'target_tokens/fr': 2,
      },
      rel=1e-5,
    )
  )


def test_numpy_gives_numpy_in_its_own_precision():
  sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums_of())
  assert isinstance(sums, Sums)
  assert {np.asarray(value).dtype for value in sums.metrics().values()} == {np.dtype(np.float64)}


def test_nothing_to_add_up_is_zero_and_no_nan():
  zero = jax.tree.map(jnp.zeros_like, sums_of())
  metrics = zero.metrics(OBJECTIVE)
  assert float(metrics['loss']) == 0.0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))


def test_targets_are_counted_where_that_is_asked_for():
  assert 'example_accuracy' not in sums_of().metrics()
  found = jnp.asarray(LOGITS).argmax(-1)
  batch = BATCH | {
    'decoder_target_tokens': found.at[1, 0].add(1),
    'decoder_segment_ids': np.array([[1, 2, 2], [1, 1, 0], [1, 1, 1], [0, 0, 0]]),
    'decoder_positions': np.array([[0, 0, 1], [0, 1, 0], [0, 1, 2], [0, 0, 0]]),
  }
  sums = OBJECTIVE.sums(jnp.asarray(LOGITS), batch, {}, count_examples=True)
  assert float(sums.metrics()['example_accuracy']) == 0.75
