"""The gradient of a batch in parts."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from switch_jax import config
from switch_jax.parallel import Layout, make_mesh
from switch_jax.training import microbatches
from tests.training.short_runs import EIGHT, FOUR, LOSS, MOE, ONE, QUIET, train


@pytest.mark.parametrize(
  ('shape', 'aggregate', 'encoder_layers'), [(ONE, 'sum', 1), (FOUR, 'mean', 1), (ONE, 'sum', 0)]
)
def test_microbatches_make_the_update_of_the_full_batch(shape, aggregate, encoder_layers):
  moe = dataclasses.replace(QUIET.moe, router_loss_aggregate=aggregate)
  model = dataclasses.replace(QUIET, num_encoder_layers=encoder_layers, moe=moe)
  whole, parts = (train(model, shape, steps=2, padding_rows=2, num_microbatches=n, loss=LOSS) for n in (1, 2))
  np.testing.assert_allclose(parts[0], whole[0], rtol=2e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), parts[1], whole[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), parts[2], whole[2])
  assert whole[1]['target_tokens'] == 32  # and not the 44 of a batch without padding


def test_noise_of_microbatches_does_not_depend_on_the_mesh():
  noisy = dataclasses.replace(QUIET, dropout_rate=0.1, moe=dataclasses.replace(MOE, encoder_layers=1, decoder_layers=1))
  one, eight = train(noisy, ONE, num_microbatches=2), train(noisy, EIGHT, num_microbatches=2)
  np.testing.assert_allclose(one[0], eight[0], rtol=2e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one[2], eight[2])


def test_rows_of_microbatches_stay_on_their_devices():
  layout = Layout(make_mesh(config.MeshConfig(data=2, expert=4, model=1), None))
  rows = np.arange(32 * 3, dtype=np.int32).reshape(32, 3)
  split = jax.jit(lambda x: microbatches.split({'x': x}, 2, QUIET, layout)['x'], in_shardings=layout.batch_sharding())
  program = split.lower(rows).compile()
  assert not re.search('all-gather|all-to-all|collective-permute|all-reduce', program.as_text())
  found = np.asarray(split(rows))
  for part in range(2):  # every second pair of rows
    np.testing.assert_array_equal(found[part], rows.reshape(8, 2, 2, 3)[:, part].reshape(16, 3))
