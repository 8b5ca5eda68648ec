"""What a run opens before its first step, in which order and why."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

import switch_jax
from switch_jax import data
from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import ConfigError, RunConfig
from switch_jax.distillation import Distillation
from switch_jax.folders.model_dir import ModelDir
from switch_jax.interop import initial_parameters, recorded_vocabulary
from switch_jax.model import parameter_count
from switch_jax.model.placement import make_layout
from switch_jax.monitoring.metric_files import MetricFiles
from switch_jax.monitoring.progress import Progress
from switch_jax.parallel import Layout
from switch_jax.training.state import StatePlan, TrainState, init_state, plan_state
from switch_jax.training.step import make_eval_step, make_finite_check, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
  """One process's share of a run, ready for its next step. What is open is closed by the stack it was opened on.

  Attributes:
    state: at `first_step`; its arrays are donated to the first step.
    first_step: steps that are behind.
    target_tokens: real target tokens of these steps.
    batches: what the train step takes beside the state, one tuple after the other.
    source: where they come from; it knows its position.
    held_out: batches of an evaluation.
    sentinels: ids that held-out losses and entropies leave out, EOS apart.
    train_step: `(state, *batches) -> (state, metrics)`.
    eval_step: `(params, batch) -> Sums`.
    are_finite: whether all parameters are.
    record: what every checkpoint records of the run beside its counters, plain JSON.
    train_files, eval_files: where metrics go.
    device: one of this process, whose memory is reported.
  """

  state: TrainState
  first_step: int
  target_tokens: int
  batches: Iterator[tuple[Any, ...]]
  # Annotations of what comes with TensorFlow are text: looking them up would import it.
  source: 'data.TrainingSource'
  held_out: 'data.EvaluationBatches'
  sentinels: tuple[int, ...]
  train_step: Callable[..., Any]
  eval_step: Callable[..., Any]
  are_finite: Callable[[Any], jax.Array]
  record: dict[str, Any]
  train_files: MetricFiles
  eval_files: MetricFiles
  device: jax.Device


def open_run(
  run: RunConfig, store: CheckpointStore, first_step: int, progress: Progress, stack: contextlib.ExitStack
) -> Opened:
  """Opens a run at the step that it continues from, 0 for a new one.

  What costs nothing and can be wrong comes first: teacher, mesh, shapes. Then the data, whose vocabulary decides
  whether parameters fit; its thread makes batches while parameters are read. Files are touched last.

  Args:
    run: the whole configuration.
    store: the checkpoints of its MODEL_DIR.
    first_step: the newest of them, or 0.
    progress: is told what is being opened.
    stack: closes what was opened, in the reverse order, also where this function fails half-way.

  Raises:
    ConfigError: the run cannot work as configured.
  """
  begins, is_first_host = not first_step, jax.process_index() == 0
  recorded = {} if begins else store.read_config(first_step)
  distillation = Distillation.open(run, recorded.get('teacher'), begins)
  layout = make_layout(run, others=distillation.models)
  axes = ' x '.join(f'{name} {size}' for name, size in layout.mesh.shape.items())
  progress.note(f'mesh: {axes} on {layout.mesh.size} {layout.mesh.devices.flat[0].device_kind} devices')
  plan = plan_state(run, layout)
  params = _given_parameters(run, plan, progress) if begins else None
  for line in distillation.describe():
    progress.note(line)

  progress.note(f'data: {run.data.mixture_or_task_name}')
  source = data.open_training(run.data, run.random_seed, layout.batch_sharding())
  stack.callback(source.close)
  vocabulary = data.describe_vocabulary(source.vocabulary)
  _check_vocabulary(run, source.vocabulary_size)
  if params is not None:
    _check_same_vocabulary(run, vocabulary)
  distillation.check_vocabulary(vocabulary)
  sentinels = tuple(range(source.vocabulary_size - source.vocabulary.extra_ids, source.vocabulary_size))
  special_tokens = (*sentinels, source.vocabulary.eos_id)
  if not begins:
    store.restore_position(first_step, source.restore_position)
  if is_first_host:
    data.keep_vocabulary(source.vocabulary, run.model_dir)
  source.start()
  held_out = data.open_evaluation(run.data, layout.batch_sharding(), run.eval_steps)

  if params is None:
    params = distillation.initial_parameters(layout)
  lessons = distillation.lessons(layout, source.fingerprint, first_step)
  stack.callback(lessons.close)
  state = init_state(run, layout, plan, params) if begins else store.restore(first_step, plan.abstract)

  folder = ModelDir(run.model_dir)
  held_out_folder = folder.held_out(run.data.mixture_or_task_name)
  train_files, eval_files = (MetricFiles(place, active=is_first_host) for place in (folder.train, held_out_folder))
  for files in (train_files, eval_files):
    stack.callback(files.close)
    files.truncate_after(-1 if begins else first_step)
  return Opened(
    state=state,
    first_step=first_step,
    target_tokens=recorded.get('target_tokens', 0),
    batches=((batch, *lessons.arguments) for batch in lessons.beside(source)),
    source=source,
    held_out=held_out,
    sentinels=sentinels,
    train_step=make_train_step(run, layout, plan, special_tokens, lessons),
    eval_step=make_eval_step(run.model, layout, plan, special_tokens, len(held_out.groups)),
    are_finite=make_finite_check(layout, plan),
    record={
      'version': switch_jax.__version__,
      'parameters': parameter_count(plan.abstract.params),
      **distillation.record(lessons),
      'model': run.model.to_json(),
      'vocabulary': vocabulary,
      'identity': run.identity(),
      'run': run.to_json(),
    },
    train_files=train_files,
    eval_files=eval_files,
    device=layout.mesh.local_devices[0],
  )


def restore_state(run: RunConfig, store: CheckpointStore, step: int) -> TrainState:
  """Reads the state of a step onto the mesh of a run that has nothing left to do."""
  recorded = store.read_config(step)
  distillation = Distillation.open(run, recorded.get('teacher'), begins=False)
  layout: Layout = make_layout(run, others=distillation.models)
  return store.restore(step, plan_state(run, layout).abstract)


def _given_parameters(run: RunConfig, plan: StatePlan, progress: Progress) -> Any:
  """Returns the parameters of `initial_checkpoint_path`, or None."""
  if not run.initial_checkpoint_path:
    return None
  progress.note(f'parameters to begin with: {run.initial_checkpoint_path}')
  return initial_parameters(run.initial_checkpoint_path, run.model, plan.abstract.params, run.upcycle)


def _check_vocabulary(run: RunConfig, size: int) -> None:
  if size > run.model.vocab_size:
    raise ConfigError(
      f'ModelConfig.vocab_size is {run.model.vocab_size} and the vocabulary of {run.data.mixture_or_task_name} has '
      f'{size} ids; the embedding needs a row for each. Set vocab_size to at least that.'
    )


def _check_same_vocabulary(run: RunConfig, vocabulary: dict[str, Any]) -> None:
  """Raises a `ConfigError` if the parameters to begin with were trained on ids that mean something else."""
  recorded = recorded_vocabulary(run.initial_checkpoint_path) or {}
  if recorded.get('digest', vocabulary['digest']) != vocabulary['digest']:
    raise ConfigError(
      f'{run.initial_checkpoint_path} was trained with the vocabulary {recorded.get("name")} of {recorded["size"]} '
      f'ids, and {run.data.mixture_or_task_name} has {vocabulary["name"]} of {vocabulary["size"]}: the same ids mean '
      'other pieces. Set --gin.VOCABULARY to the one of the checkpoint; its MODEL_DIR may hold it as vocabulary.model.'
    )
