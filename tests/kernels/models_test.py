"""Several models at once and in turn: the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.config.mesh import KERNELS
from switch_jax.kernels.models import over_models
from switch_jax.parallel import Layout


@pytest.mark.parametrize('form', KERNELS['models'])
def test_each_model_has_its_own_arguments(form):
  weights, rows = jnp.arange(6.0).reshape(3, 2), jnp.arange(12.0).reshape(3, 2, 2)
  function = lambda weight, row, nothing: {'product': row @ weight, 'nothing': nothing}  # noqa: E731
  found = jax.jit(over_models(dataclasses.replace(Layout.single_device(), kernels=(('models', form),)), function))(
    weights, rows, None
  )
  expected = np.stack([row @ weight for weight, row in zip(np.asarray(weights), np.asarray(rows), strict=True)])
  np.testing.assert_allclose(found['product'], expected, rtol=1e-6)
  assert found['nothing'] is None
