"""A function of one model for several of them, whose arrays are stacked along a first axis."""

from collections.abc import Callable
from typing import Any

import jax

from switch_jax.kernels.table import forms
from switch_jax.parallel import Layout


def over_models(layout: Layout, function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the function of stacked arguments that gives its results stacked, in the form for a layout's devices.

  Args:
    layout: where.
    function: of the arguments of one model, pytrees of arrays (None has none).
  """
  if forms(layout)['models'] == 'at_once':
    return jax.vmap(function)
  return lambda *arguments: jax.lax.map(lambda each: function(*each), arguments)
