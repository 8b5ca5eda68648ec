"""What a checkpoint says of where it was made."""

import jax
import numpy as np

from switch_jax.training.provenance import provenance


def test_device_packages_and_counts():
  found = provenance(jax.devices()[:4])
  assert (found['device'], found['devices'], found['processes']) == ('cpu', 4, 1)
  assert found['packages']['jax'] == jax.__version__
  assert found['packages']['numpy'] == np.__version__
  assert {'flax', 'optax', 'orbax-checkpoint'} <= set(found['packages'])


def test_a_precision_that_was_asked_for():
  with jax.default_matmul_precision('highest'):
    assert provenance(jax.devices()[:1])['device'] == 'cpu with matrix products of highest precision'
