"""What the features of a task are, as a checkpoint records them beside its vocabulary, and what that means later."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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


def recorded_add_eos(record: Mapping[str, Any], name: str) -> bool | None:
  """Returns whether a checkpoint's task ended a feature with EOS; None where its `config.json` does not say."""
  value = ((record.get('features') or {}).get(name) or {}).get('add_eos')
  return value if isinstance(value, bool) else None


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
