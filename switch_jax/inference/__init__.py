"""Using a model: logits, decoding, scores, texts, evaluation by metrics.

Importing this package is cheap; what needs TensorFlow comes in with its first use.
"""

import importlib
from typing import TYPE_CHECKING

from switch_jax.inference.decoding import Decoded, Ids, make_decode
from switch_jax.inference.loading import LoadedModel, load_model
from switch_jax.inference.logits import compute_logits
from switch_jax.inference.scoring import make_score, with_capacity

if TYPE_CHECKING:
  from switch_jax.inference.evaluation import evaluate_run
  from switch_jax.inference.generator import Generator, Prediction
  from switch_jax.inference.prediction_files import predict_file

_HOMES = {
  'Generator': 'generator',
  'Prediction': 'generator',
  'evaluate_run': 'evaluation',
  'predict_file': 'prediction_files',
}

__all__ = [
  'Decoded',
  'Generator',
  'Ids',
  'LoadedModel',
  'Prediction',
  'compute_logits',
  'evaluate_run',
  'load_model',
  'make_decode',
  'make_score',
  'predict_file',
  'with_capacity',
]


def __getattr__(name: str):
  """Imports what needs TensorFlow on first use."""
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
