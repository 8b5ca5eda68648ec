"""What goes in: SeqIO tasks to packed rows to global arrays, with a position that can be saved.

Importing this package is cheap: TensorFlow and SeqIO come in when data is first opened, so that a wrong configuration
is reported without waiting for them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from switch_jax.data.yardsticks import TargetEntropies, target_entropies

if TYPE_CHECKING:
  from switch_jax.data.evaluation import EvaluationBatches, open_evaluation, read_held_out
  from switch_jax.data.features import recorded_add_eos, with_observed_eos
  from switch_jax.data.layout import Batch, HostBatch
  from switch_jax.data.pipeline import TrainingSource, open_training
  from switch_jax.data.providers import look_at, vocabulary_of
  from switch_jax.data.sentinels import decode_tokens, encode_text, sentinel_ids
  from switch_jax.data.vocabularies import (
    check_vocabulary,
    describe_vocabulary,
    keep_vocabulary,
    load_vocabulary,
    make_vocabulary,
    recorded_name,
  )

_HOMES = {
  'Batch': 'layout',
  'EvaluationBatches': 'evaluation',
  'HostBatch': 'layout',
  'TrainingSource': 'pipeline',
  'check_vocabulary': 'vocabularies',
  'decode_tokens': 'sentinels',
  'describe_vocabulary': 'vocabularies',
  'encode_text': 'sentinels',
  'keep_vocabulary': 'vocabularies',
  'load_vocabulary': 'vocabularies',
  'look_at': 'providers',
  'make_vocabulary': 'vocabularies',
  'open_evaluation': 'evaluation',
  'open_training': 'pipeline',
  'read_held_out': 'evaluation',
  'recorded_add_eos': 'features',
  'recorded_name': 'vocabularies',
  'sentinel_ids': 'sentinels',
  'vocabulary_of': 'providers',
  'with_observed_eos': 'features',
}

__all__ = [
  'Batch',
  'EvaluationBatches',
  'HostBatch',
  'TargetEntropies',
  'TrainingSource',
  'check_vocabulary',
  'decode_tokens',
  'describe_vocabulary',
  'encode_text',
  'keep_vocabulary',
  'load_vocabulary',
  'look_at',
  'make_vocabulary',
  'open_evaluation',
  'open_training',
  'read_held_out',
  'recorded_add_eos',
  'recorded_name',
  'sentinel_ids',
  'target_entropies',
  'vocabulary_of',
  'with_observed_eos',
]


def __getattr__(name: str) -> Any:
  """Imports what needs TensorFlow on first use."""
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
