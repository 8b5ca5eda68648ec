"""Loss on the held-out split during training."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from switch_jax.training.sums import Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationResult:
  """One pass over the held-out batches.

  Attributes:
    metrics: plain numbers by the names of `metrics.jsonl`; losses in nats per target token. `cross_ent_loss_text`
      leaves out sentinels and EOS, which any model soon learns. Of tasks with metrics `example_accuracy` is the share
      of targets that are right from end to end. Where the batches have groups (languages), also
      `cross_ent_loss/<group>` and `target_tokens/<group>`, of those that have target tokens.
    expert_tokens: by layer, the tokens that wanted each expert, float64 `[num_experts]`.
  """

  metrics: dict[str, float]
  expert_tokens: dict[str, np.ndarray]


def evaluate(eval_step: Callable[[Any, Any], Sums], params: Any, batches: Iterable[Any]) -> EvaluationResult:
  """Runs the evaluation step over all batches, adds up its sums in float64 and divides them.

  Args:
    eval_step: from `make_eval_step`.
    params: parameters on the mesh.
    batches: global batches; `EvaluationBatches.groups`, if they have it, names the groups of the sums.

  Raises:
    ValueError: there is no batch.
  """
  return _result_of(_total(eval_step, params, batches), batches)


def evaluate_together(
  eval_step: Callable[[Any, Any], Sums], params: Any, batches: Iterable[Any]
) -> list[EvaluationResult]:
  """As `evaluate`, for several models whose parameters, and whose sums, are stacked along a first axis."""
  totals = _total(eval_step, params, batches)
  return [
    _result_of(jax.tree.map(lambda x, i=i: np.asarray(x[i]), totals), batches)
    for i in range(len(totals.targets.tokens))
  ]


def _total(eval_step: Callable[[Any, Any], Sums], params: Any, batches: Iterable[Any]) -> Sums:
  """Returns the sums over all batches, float64 on this host."""
  totals: Sums | None = None
  for batch in batches:
    sums = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(eval_step(params, batch)))
    totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
  if totals is None:
    raise ValueError('no batches to evaluate on')
  return totals


def _result_of(totals: Sums, batches: Iterable[Any]) -> EvaluationResult:
  metrics = totals.metrics(groups=getattr(batches, 'groups', ()))
  return EvaluationResult(
    metrics={name: float(value) for name, value in metrics.items()},
    expert_tokens={layer: router.expert_tokens for layer, router in totals.routers.items()},
  )
