"""Loss on the held-out split during training."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationResult:
  """One pass over the held-out batches.

  Attributes:
    metrics: plain numbers by the names of `metrics.jsonl`; losses in nats per target token. `cross_ent_loss_text`
      leaves out sentinels and EOS, which any model soon learns. Where the batches have groups (languages), also
      `cross_ent_loss/<group>` and `target_tokens/<group>`, of those that have target tokens.
    expert_tokens: by layer, the tokens that wanted each expert, float64 `[num_experts]`.
  """

  metrics: dict[str, float]
  expert_tokens: dict[str, np.ndarray]


def evaluate(eval_step: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any]) -> EvaluationResult:
  """Runs the evaluation step over all batches and divides the sums.

  Args:
    eval_step: from `make_eval_step`.
    params: parameters on the mesh.
    batches: global batches; `EvaluationBatches.groups`, if they have it, names the groups of the sums.

  Raises:
    ValueError: there is no batch.
  """
  totals = None
  for batch in batches:
    sums = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(eval_step(params, batch)))
    totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
  if totals is None:
    raise ValueError('no batches to evaluate on')
  tokens, text = max(totals['tokens'], 1.0), max(totals['text_tokens'], 1.0)
  metrics = {
    'cross_ent_loss': totals['cross_entropy'] / tokens,
    'cross_ent_loss_text': totals['text_cross_entropy'] / text,
    'accuracy': totals['correct'] / tokens,
    'target_tokens': totals['tokens'],
  }
  if groups := getattr(batches, 'groups', ()):
    for name, count, loss in zip(groups, totals['groups']['tokens'], totals['groups']['cross_entropy'], strict=True):
      if count:
        metrics |= {f'cross_ent_loss/{name}': loss / count, f'target_tokens/{name}': count}
  layers = totals['routed']
  for layer, load in totals['expert_tokens'].items():
    metrics[f'fraction_dropped/{layer}'] = totals['dropped'][layer] / max(layers[layer], 1.0)
    metrics[f'expert_load_max_over_mean/{layer}'] = load.max() / max(load.mean(), 1e-9)
    metrics[f'experts_unused/{layer}'] = np.sum(load == 0)
  if layers:
    metrics['fraction_dropped'] = np.mean([metrics[f'fraction_dropped/{layer}'] for layer in layers])
    metrics['expert_load_max_over_mean'] = np.max([metrics[f'expert_load_max_over_mean/{layer}'] for layer in layers])
    metrics['experts_unused'] = np.sum([metrics[f'experts_unused/{layer}'] for layer in layers])
  return EvaluationResult(
    metrics={name: float(value) for name, value in metrics.items()}, expert_tokens=totals['expert_tokens']
  )
