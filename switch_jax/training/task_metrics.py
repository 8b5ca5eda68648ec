"""The metrics of the task while a run trains: its held-out examples decoded by the parameters at hand."""

from collections.abc import Callable
from typing import Any

from switch_jax.config import EvaluationConfig, RunConfig
from switch_jax.inference import LoadedModel, with_capacity
from switch_jax.parallel import Layout


def open_task_metrics(run: RunConfig, layout: Layout) -> Callable[[Any, int], dict[str, float]]:
  """Reads the held-out examples, as many as an evaluation of the loss takes, and checks the metrics.

  Args:
    run: the whole configuration.
    layout: of the run; parameters stay where they lie.

  Returns:
    The function of parameters and step that gives the metrics, as `--run_mode=eval` does: decoded greedily, nothing
    dropped. Of a mixture those are averages over its tasks, and each task's as `<metric>/<task>`.

  Raises:
    ConfigError: the task has no metric, or they cannot be used.
  """
  # Both import TensorFlow.
  from switch_jax.inference.evaluation import TaskEvaluator
  from switch_jax.inference.evaluation_records import mixture_averages, plain_numbers

  examples = run.eval_steps * run.data.batch_size
  evaluator = TaskEvaluator(EvaluationConfig(model_dir=run.model_dir, data=run.data, num_examples=examples))
  config = with_capacity(run.model, None)

  def measure(params: Any, step: int) -> dict[str, float]:
    found, _ = evaluator.evaluate(LoadedModel(config, layout, params, step, record={}))
    if list(found) == [run.data.mixture_or_task_name]:
      return plain_numbers(found[run.data.mixture_or_task_name])
    by_task = {f'{n}/{task}': value for task, values in found.items() for n, value in plain_numbers(values).items()}
    return mixture_averages(list(found.values())) | by_task

  return measure
