"""What is computed: the T5 encoder-decoder with Switch layers, routing, dispatch, and losses."""

from switch_jax.model.parameters import (
  abstract_parameters,
  init_parameters,
  parameter_axes,
  parameter_count,
  parameter_shapes,
  parameter_widths,
)
from switch_jax.model.transformer import Transformer

__all__ = [
  'Transformer',
  'abstract_parameters',
  'init_parameters',
  'parameter_axes',
  'parameter_count',
  'parameter_shapes',
  'parameter_widths',
]
