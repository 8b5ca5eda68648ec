"""What the features of a task are, as a checkpoint records them beside its vocabulary, and what that means later."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from switch_jax.data.quiet_tensorflow import seqio

# What a data position of an older version does not have.
NEW_IN_FINGERPRINT = ('inputs_features', 'targets_features')


def describe_features(provider: 'seqio.Task | seqio.Mixture', lengths: Mapping[str, int]) -> dict[str, dict[str, Any]]:
  """Returns what a checkpoint's `config.json` records of `inputs` and `targets`, plain values.

  Args:
    provider: the task or mixture.
    lengths: of the rows, in tokens.

  Returns:
    For each feature `add_eos`, `dtype`, `required` and `length`. What the tasks of a mixture do not share is None.
  """
  # A mixture's own features are those of whichever task comes first.
  tasks = getattr(provider, 'tasks', [provider])
  described = {}
  for name, length in lengths.items():
    features = [task.output_features[name] for task in tasks]
    facts = {
      'add_eos': [bool(feature.add_eos) for feature in features],
      'dtype': [feature.dtype.name for feature in features],
      'required': [bool(feature.required) for feature in features],
    }
    described[name] = {key: values[0] if len(set(values)) == 1 else None for key, values in facts.items()}
    described[name]['length'] = length
  return described


def fingerprint_features(features: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
  """Returns the same in one line a feature, for what identifies data; lengths stand there already."""
  return {
    f'{name}_features': ', '.join(f'{key} {value}' for key, value in facts.items() if key != 'length')
    for name, facts in features.items()
  }


def with_observed_eos(
  features: Mapping[str, Mapping[str, Any]], batches: Iterable[Mapping[str, np.ndarray]], eos_id: int
) -> dict[str, dict[str, Any]]:
  """Returns the features with `ends_with_eos`, what the examples do: preprocessors append EOS, or do not.

  Args:
    features: of `describe_features`.
    batches: rows, packed or not, as those of `TrainingSource`.
    eos_id: of the vocabulary.

  Returns:
    `ends_with_eos` is True or False where all examples agree that were not cut at the length, and else None.
  """
  batches, found = list(batches), {}
  for name, facts in features.items():
    ends: set[bool] = set()
    for batch in batches:
      rows, is_last, is_full = _last_tokens(batch, name, facts['length'])
      ends |= set((rows[is_last & ~is_full] == eos_id).tolist())  # as long as it may be: perhaps cut
    found[name] = {**features[name], 'ends_with_eos': ends.pop() if len(ends) == 1 else None}
  return found


def _last_tokens(batch: Mapping[str, np.ndarray], name: str, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the rows that hold a feature, where it ends in them, and where it is as long as it may be."""
  is_encoder = name == 'inputs' and 'encoder_input_tokens' in batch
  side, tokens = ('encoder', 'encoder_input_tokens') if is_encoder else ('decoder', 'decoder_target_tokens')
  segments, sizes = batch[f'{side}_segment_ids'], batch[f'{side}_positions'] + 1
  following = lambda x: np.pad(x, ((0, 0), (0, 1)))[:, 1:]  # noqa: E731
  is_last = (segments > 0) & (segments != following(segments))
  if is_encoder or 'decoder_causal_attention' not in batch:
    length = segments.shape[1]
  else:  # it marks one token more than there are inputs
    marked = batch['decoder_causal_attention'] > 0
    is_input = marked & following(marked) & ~is_last
    if name == 'inputs':
      is_last = is_input & ~following(is_input)
    else:
      inputs = np.cumsum(is_input, axis=1)
      before = np.maximum.accumulate(np.where(sizes == 1, inputs - is_input, 0), axis=1)
      sizes = sizes - (inputs - before)
  return batch[tokens], is_last, sizes == length


def recorded_add_eos(record: Mapping[str, Any], name: str) -> bool | None:
  """Returns whether a checkpoint's task ended a feature with EOS; None where its `config.json` does not say."""
  recorded = (record.get('features') or {}).get(name) or {}
  values = (recorded.get('ends_with_eos'), recorded.get('add_eos'))
  return next((value for value in values if isinstance(value, bool)), None)


def differing_features(
  recorded: Mapping[str, Any] | None, provider: 'seqio.Task | seqio.Mixture', lengths: Mapping[str, int]
) -> list[str]:
  """Returns in words what of the features is other than a checkpoint records, lengths apart; nothing if it has none."""
  differences = []
  for name, facts in describe_features(provider, lengths).items():
    before = (recorded or {}).get(name) or {}
    for key, value in facts.items():
      if key != 'length' and before.get(key) not in (None, value):
        differences.append(f'{key} of {name} was {before[key]} and is {value}')
  return differences
