"""What a loss on held-out text is to be compared with: entropies of the very tokens it is measured on."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetEntropies:
  """Entropies in nats per token.

  Attributes:
    unigram: of the distribution of the tokens.
    bigram: of a token when the one before it in its row is known.
    num_tokens: tokens that were counted.
  """

  unigram: float
  bigram: float
  num_tokens: int


def target_entropies(
  batches: Iterable[Mapping[str, np.ndarray]], sentinel_ids: Iterable[int], eos_id: int = 1, pad_id: int = 0
) -> TargetEntropies:
  """Counts the text tokens among the targets, that is all but sentinels, EOS, and padding.

  `unigram` is the loss on these tokens of a model that knows nothing but how often each occurs; `bigram` that of one
  that also sees the token before, sentinels included. Both are counted on the same tokens they describe and not
  smoothed, so each is the lowest loss that any model of its kind can have on them: a model below `unigram` or `bigram`
  has learnt more than that. With few tokens `bigram` is far too low a bar to pass, since most pairs then occur once.

  The model's `cross_ent_loss` is over sentinels and EOS too, which are easy; do not compare it with these directly.

  Args:
    batches: each with `decoder_target_tokens`, `decoder_input_tokens` (the tokens before them), and
      `decoder_loss_weights`, integers [batch, targets length].
    sentinel_ids: ids that stand for spans.
    eos_id: id of the end of a sequence.
    pad_id: id of padding.

  Returns:
    The entropies.

  Raises:
    ValueError: there is no text token.
  """
  special = [*sentinel_ids, eos_id, pad_id]
  found = []
  for batch in batches:
    targets = np.asarray(batch['decoder_target_tokens'])
    is_text = (np.asarray(batch['decoder_loss_weights']) > 0) & ~np.isin(targets, special)
    found.append(np.stack([np.asarray(batch['decoder_input_tokens'])[is_text], targets[is_text]], axis=1))
  pairs: np.ndarray = np.concatenate(found) if found else np.zeros((0, 2), np.int32)
  if not len(pairs):
    raise ValueError('The batches hold no text tokens: only sentinels, EOS, and padding.')
  joint = _entropy(np.unique(pairs, axis=0, return_counts=True)[1])
  previous = _entropy(np.unique(pairs[:, 0], return_counts=True)[1])
  return TargetEntropies(
    unigram=_entropy(np.unique(pairs[:, 1], return_counts=True)[1]),
    bigram=joint - previous,  # H(token | previous) = H(previous, token) - H(previous)
    num_tokens=len(pairs),
  )


def _entropy(counts: np.ndarray) -> float:
  """Returns the entropy, in nats, of the distribution that counts are proportional to."""
  probabilities = counts / counts.sum()
  return float(-(probabilities * np.log(probabilities)).sum())
