"""Configuration as frozen facts: keyword-only dataclasses, checked when made, importing only the standard library.

gin files bind these classes (`from switch_jax import config`); notebooks call them.
"""

from switch_jax.config.distillation import INHERITED_KINDS, DistillationConfig
from switch_jax.config.identity import flatten
from switch_jax.config.inference import DecodingConfig, EvaluationConfig, PredictionConfig
from switch_jax.config.mesh import MeshConfig
from switch_jax.config.model import ModelConfig
from switch_jax.config.moe import LayerPattern, MoeConfig, layer_indices
from switch_jax.config.run import (
  CheckpointConfig,
  DataConfig,
  HealthConfig,
  LossConfig,
  OptimizerConfig,
  RunConfig,
)
from switch_jax.config.sweep import SweepConfig
from switch_jax.config.table import METRICS, TableConfig
from switch_jax.config.upcycle import UpcycleConfig
from switch_jax.config.validation import Checked, ConfigError, first_line, suggest, unknown_fields

__all__ = [
  'INHERITED_KINDS',
  'METRICS',
  'Checked',
  'CheckpointConfig',
  'ConfigError',
  'DataConfig',
  'DecodingConfig',
  'DistillationConfig',
  'EvaluationConfig',
  'HealthConfig',
  'LayerPattern',
  'LossConfig',
  'MeshConfig',
  'ModelConfig',
  'MoeConfig',
  'OptimizerConfig',
  'PredictionConfig',
  'RunConfig',
  'SweepConfig',
  'TableConfig',
  'UpcycleConfig',
  'first_line',
  'flatten',
  'layer_indices',
  'suggest',
  'unknown_fields',
]
