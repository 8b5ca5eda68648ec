"""A teacher's distributions and the student's loss against them, by hand and by properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from switch_jax.distillation.soft_targets import SoftTargets, soft_sums, soft_targets

RANDOM = np.random.default_rng(0)
TEACHER, STUDENT = RANDOM.normal(0, 2, (2, 3, 7, 11)).astype(np.float32)
WEIGHTS = np.array([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]], np.int32)


def by_hand(temperature, top_k):
  """The same sums in float64, class by class."""
  cross_entropy = divergence = 0.0
  for row, column in zip(*np.nonzero(WEIGHTS), strict=True):
    p, q = (scipy.special.softmax(x[row, column].astype(np.float64) / temperature) for x in (TEACHER, STUDENT))
    kept = np.argsort(-p)[:top_k]
    rest = np.setdiff1d(np.arange(len(p)), kept)
    p, q = (np.append(x[kept], x[rest].sum()) if len(rest) else x[kept] for x in (p, q))
    cross_entropy -= np.sum(p * np.log(q))
    divergence += np.sum(p * np.log(p / q))
  return cross_entropy, divergence


@pytest.mark.parametrize('temperature', [1.0, 3.0])
@pytest.mark.parametrize('top_k', [1, 4, 10, 11])
def test_sums_are_those_of_the_formula(temperature, top_k):
  targets = soft_targets(jnp.asarray(TEACHER), temperature, top_k)
  assert (targets.ids is None) == (top_k == 11)
  sums = soft_sums(jnp.asarray(STUDENT), targets, WEIGHTS, temperature)
  np.testing.assert_allclose((sums.cross_entropy, sums.divergence), by_hand(temperature, top_k), rtol=2e-5)


def test_all_tokens_by_id_are_all_tokens_in_order():
  """With k = vocabulary the class of the others is empty and changes nothing."""
  whole = soft_targets(jnp.asarray(TEACHER), 2.0)
  listed = SoftTargets(*jax.lax.top_k(whole.log_probabilities, 11))

  def loss(logits, targets):
    return soft_sums(logits, targets, WEIGHTS, 2.0).cross_entropy

  for function in (loss, jax.grad(loss)):
    np.testing.assert_allclose(function(STUDENT, listed), function(STUDENT, whole), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('top_k', [3, 11])
def test_a_student_equal_to_its_teacher_has_no_gradient(top_k):
  targets = soft_targets(jnp.asarray(TEACHER), 2.0, top_k)
  gradient = jax.grad(lambda logits: soft_sums(logits, targets, WEIGHTS, 2.0).cross_entropy)
  assert np.abs(gradient(TEACHER)).max() < 1e-6
  assert np.abs(gradient(STUDENT)).max() > 0.01
  assert abs(soft_sums(TEACHER, targets, WEIGHTS, 2.0).divergence) < 1e-5


def test_a_class_without_probability_adds_nothing():
  """Also where the student is certain of something else: no NaN from 0 * infinity, forwards or backwards."""
  certain = np.full((1, 1, 5), -1e4, np.float32)
  certain[..., 2] = 1e4
  other = np.roll(certain, 1, axis=-1)
  for top_k in (1, 2, 5):
    targets = soft_targets(jnp.asarray(certain), 1.0, top_k)
    value, gradient = jax.value_and_grad(lambda x, t=targets: soft_sums(x, t, np.ones((1, 1)), 1.0).cross_entropy)(
      other
    )
    assert np.isfinite(value)
    assert value > 1e3
    assert np.isfinite(gradient).all()


def test_the_class_of_the_others_is_a_lower_bound():
  """Joining classes never raises a divergence, and the more are kept the nearer it comes to the whole."""
  found = []
  for top_k in (1, 2, 4, 8, 11):
    targets = soft_targets(jnp.asarray(TEACHER), 1.0, top_k)
    found.append(float(soft_sums(jnp.asarray(STUDENT), targets, WEIGHTS, 1.0).divergence))
  assert found == sorted(found)
  assert found[0] < 0.9 * found[-1]
