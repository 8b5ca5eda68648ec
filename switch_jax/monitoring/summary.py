"""What a run came to, in a few lines of plain text: for the terminal, at its end."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from switch_jax.monitoring.progress import duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFacts:
  """The numbers of a run that its summary is made of. None: not known, and left out.

  Attributes:
    steps: steps that are done, those before a resume included.
    seconds: wall time of this process.
    target_tokens: real target tokens of all steps.
    held_out_before, held_out_after: cross-entropy on held-out text before the first and after the last step, in nats
      per target token, over the tokens that the entropies are of: no sentinels, no EOS, no padding.
    unigram_entropy, bigram_entropy: of the same tokens, in nats.
    fraction_dropped: share of the routed tokens that found no slot.
    expert_tokens: tokens sent to each expert, `[experts]`, by layer (`encoder_1`); empty for a dense model.
    files: where things lie, by what they are.
    next_command: what to try next.
  """

  steps: int
  seconds: float
  target_tokens: int | None = None
  held_out_before: float | None = None
  held_out_after: float | None = None
  unigram_entropy: float | None = None
  bigram_entropy: float | None = None
  fraction_dropped: float | None = None
  expert_tokens: Mapping[str, Sequence[float] | np.ndarray] = dataclasses.field(default_factory=dict)
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  next_command: str | None = None


def summarize(facts: RunFacts) -> str:
  """Returns the summary, some 15 lines, without a newline at its end."""
  tokens = f' on {facts.target_tokens:,} target tokens' if facts.target_tokens is not None else ''
  parts = [
    [f'Trained {facts.steps:,} steps{tokens} in {duration(facts.seconds)}.'],
    _losses(facts),
    _routing(facts),
    _table(facts.files),
    ['Next:', f'  {facts.next_command}'] if facts.next_command else [],
  ]
  return '\n\n'.join('\n'.join(lines) for lines in parts if lines)


def _losses(facts: RunFacts) -> list[str]:
  """The held-out losses among the entropies, the highest first, as the rungs of a ladder."""
  rungs = [
    ('before training', facts.held_out_before, ''),
    ('unigram entropy', facts.unigram_entropy, 'the best one can do knowing only how frequent each token is'),
    ('bigram entropy', facts.bigram_entropy, 'the best one can do seeing only the token before'),
    ('after training', facts.held_out_after, ''),
  ]
  known = [(name, value, what) for name, value, what in rungs if value is not None]
  if not known:
    return []
  # A loss that is no number goes first, where it is seen.
  known.sort(key=lambda rung: -rung[1] if math.isfinite(rung[1]) else -math.inf)
  lines = [f'  {name:<16} {value:7.3f}   {what}'.rstrip() for name, value, what in known]
  return ['Held-out loss, in nats per target token (sentinels and EOS left out):', *lines]


def _routing(facts: RunFacts) -> list[str]:
  lines = []
  if facts.fraction_dropped is not None:
    lines.append(f'Tokens dropped: {facts.fraction_dropped:.2%}')
  if facts.expert_tokens:
    lines.append(f'Experts used:   {experts_used(facts.expert_tokens)}')
  return lines


def experts_used(expert_tokens: Mapping[str, Sequence[float] | np.ndarray]) -> str:
  """Returns how many experts got any token: `8 of 8 in every layer`, else the layers where some got none.

  Args:
    expert_tokens: tokens sent to each expert, `[experts]`, by layer.
  """
  used = {layer: (np.count_nonzero(tokens), len(tokens)) for layer, tokens in expert_tokens.items()}
  if len(set(used.values())) == 1:
    return '{} of {} in every layer'.format(*next(iter(used.values())))
  partly = sorted((layer for layer, (some, all_) in used.items() if some < all_), key=layer_key)
  parts = ['{} of {} in {}'.format(*used[layer], layer) for layer in partly]
  others = len(used) - len(partly)
  return ', '.join(parts) + (f', all in the other {others}' if others else '')


def layer_key(layer: str) -> tuple[bool, str, list[int]]:
  """Returns what layers are sorted by: the encoder first, then by number, `encoder_9` before `encoder_11`."""
  numbers = [int(n) for n in re.findall(r'\d+', layer)]
  return (not layer.startswith('encoder'), re.sub(r'\d+', '', layer), numbers)


def _table(rows: Mapping[str, str]) -> list[str]:
  width = max(map(len, rows), default=0)
  return [f'{name:<{width}}  {value}' for name, value in rows.items()]
