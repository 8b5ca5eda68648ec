"""Log probabilities of targets, against logits that are known; and capacities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from switch_jax.config import DataConfig, LossConfig, MeshConfig
from switch_jax.data.quiet_tensorflow import tf
from switch_jax.data.streams import to_rows
from switch_jax.inference import make_score, scoring, with_capacity
from switch_jax.model import Transformer
from switch_jax.model.losses import token_sums
from switch_jax.parallel import Layout, make_mesh
from tests.inference.written_checkpoints import DECODER, MODEL, random_parameters

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


def test_the_scores_of_a_decoder_only_model_are_the_loss_of_its_rows():
  """Rows as training has them, of SeqIO's converter; and as scoring has them, on a mesh."""
  model = dataclasses.replace(with_capacity(DECODER, None), prefix_lm=True)
  random = np.random.default_rng(3)
  params = random_parameters(10, model)
  examples = [
    {name: random.integers(3, 259, n, dtype=np.int32) for name, n in zip(('inputs', 'targets'), sizes, strict=True)}
    for sizes in ((6, 4), (1, 2), (0, 4), (4, 1), (2, 3), (6, 1), (5, 4), (3, 3))
  ]
  padded = lambda name, n: np.stack([np.pad(e[name], (0, n - len(e[name]))) for e in examples])  # noqa: E731
  layout = Layout(make_mesh(MeshConfig(data=2, expert=2, model=2), None))
  found = np.asarray(make_score(model, layout)(params, padded('inputs', 6), padded('targets', 4)))

  @jax.jit
  def losses(params, batch):
    logits, _ = Transformer(model, Layout.single_device()).apply({'params': params}, batch)
    one = lambda *row: token_sums(*(x[None] for x in row), LossConfig()).cross_entropy  # noqa: E731
    return jax.vmap(one)(logits, batch['decoder_target_tokens'], batch['decoder_loss_weights'])

  data = DataConfig(mixture_or_task_name='any', feature_lengths={'inputs': 6, 'targets': 4}, batch_size=8, pack=False)
  dataset = tf.data.Dataset.from_generator(
    lambda: iter(examples), output_signature={name: tf.TensorSpec([None], tf.int32) for name in ('inputs', 'targets')}
  )
  [batch] = to_rows(dataset, data, decoder_only=True).batch(8).as_numpy_iterator()
  batch['decoder_segment_ids'] = (batch['decoder_target_tokens'] > 0).astype(np.int32)
  np.testing.assert_allclose(-found, losses(params, batch), rtol=1e-5)
