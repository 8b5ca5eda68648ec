"""Weights of other software: T5X and Hugging Face checkpoints as a `ModelConfig` and a nested dict of arrays.

from switch_jax import inference, interop

model_config, params = interop.load('t5x', '/models/switch_base/e8/checkpoint_500100', sequences_per_group=1)
logits = inference.compute_logits(model_config, params, encoder_input_tokens, decoder_input_tokens)
"""

from switch_jax.interop.inheritance import Inheritance, find_inheritance, inherit
from switch_jax.interop.initial import (
  CheckpointFacts,
  describe_checkpoint,
  inherited_vocabulary,
  initial_parameters,
  recorded_vocabulary,
)
from switch_jax.interop.loading import FORMATS, load, load_config
from switch_jax.interop.scanned import separate_layers, stack_layers
from switch_jax.interop.t5x import load_optimizer_state
from switch_jax.model import parameter_shapes

__all__ = [
  'FORMATS',
  'CheckpointFacts',
  'Inheritance',
  'describe_checkpoint',
  'find_inheritance',
  'inherit',
  'inherited_vocabulary',
  'initial_parameters',
  'load',
  'load_config',
  'load_optimizer_state',
  'parameter_shapes',
  'recorded_vocabulary',
  'separate_layers',
  'stack_layers',
]
