"""What a run opens before its first step, in which order and why."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

import switch_jax
from switch_jax import data
from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import ConfigError, RunConfig
from switch_jax.distillation import Distillation
from switch_jax.folders.claim import Claim
from switch_jax.folders.metric_lines import replace_file
from switch_jax.folders.model_dir import ModelDir
from switch_jax.interop import inherited_vocabulary, initial_parameters, recorded_vocabulary
from switch_jax.model import parameter_count
from switch_jax.model.placement import make_layout
from switch_jax.monitoring.metric_files import MetricFiles
from switch_jax.monitoring.profiling import Profiler, Window
from switch_jax.monitoring.progress import Progress
from switch_jax.monitoring.reporting import Reporter
from switch_jax.monitoring.trackers import Trackers
from switch_jax.parallel import Layout
from switch_jax.parallel.agreement import require_agreement, require_same_run
from switch_jax.parallel.compilation import compiled_by_all
from switch_jax.parallel.ownership import owned
from switch_jax.training.provenance import provenance
from switch_jax.training.state import StatePlan, TrainState, init_state, plan_state
from switch_jax.training.step import make_eval_step, make_finite_check, make_train_step
from switch_jax.training.task_metrics import open_task_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
  """One process's share of a run, ready for its next step. What is open is closed by the stack it was opened on.

  Attributes:
    run: the configuration.
    store: the checkpoints.
    layout, plan: where the state lies, and everything known about it beforehand.
    state: at `first_step`; its arrays are donated to the first step.
    first_step: steps that are behind.
    batches: what the train step takes beside the state, one tuple after the other.
    source: where they come from; it knows its position.
    held_out: batches of an evaluation.
    sentinels: ids that held-out losses and entropies leave out, EOS apart.
    special_tokens: those and EOS.
    train_step: `(state, *batches) -> (state, metrics)`.
    eval_step: `(params, batch) -> Sums`.
    task_metrics: `(params, step) -> metrics` of the task on held-out examples, if the run wants them.
    are_finite: whether all parameters are.
    record: what every checkpoint records of the run beside its counters, plain JSON.
    eval_files: where held-out metrics go.
    flush: waits until all metrics written so far can be read by others.
    evaluated: steps that earlier processes have evaluated, as far as this host knows.
    progress, reporter, profiler: what is shown and written of every step.
  """

  run: RunConfig
  store: CheckpointStore
  layout: Layout
  plan: StatePlan
  state: TrainState
  first_step: int
  batches: Iterator[tuple[Any, ...]]
  # Annotations of what comes with TensorFlow are text: looking them up would import it.
  source: 'data.TrainingSource'
  held_out: 'data.EvaluationBatches'
  sentinels: tuple[int, ...]
  special_tokens: tuple[int, ...]
  train_step: Callable[..., Any]
  eval_step: Callable[..., Any]
  task_metrics: Callable[[Any, int], dict[str, float]] | None
  are_finite: Callable[[Any], jax.Array]
  record: dict[str, Any]
  eval_files: MetricFiles
  flush: Callable[[], None]
  evaluated: set[int]
  progress: Progress
  reporter: Reporter
  profiler: Profiler


def open_store(run: RunConfig, stack: contextlib.ExitStack) -> tuple[CheckpointStore, Claim]:
  """Opens the checkpoints of a run once its hosts agree on what it is, and claims its folder before anything changes.

  Raises:
    ConfigError: the hosts differ, the checkpoints belong to another run, one is under way there, or the folder cannot
      be written to.
  """
  require_same_run(run)
  store, folder = CheckpointStore(run.model_dir, run.checkpoint), ModelDir(run.model_dir)
  claim = stack.enter_context(owned(folder.owner, f'MODEL_DIR {folder.path}', 'set another --gin.MODEL_DIR'))
  stack.callback(store.close)
  store.check_identity(run.identity())
  return store, claim


def record_beginning(run: RunConfig, config_gin: str) -> None:
  """Writes down which run was begun in the folder, unless that stands there, and its gin text; on the first host."""
  if jax.process_index() != 0:
    return
  folder = ModelDir(run.model_dir)
  if config_gin:
    folder.config_gin.write_text(config_gin)
  if folder.read_begun() is None:
    replace_file(folder.begun, json.dumps({'version': switch_jax.__version__, 'identity': run.identity()}) + '\n')


def lay_out(run: RunConfig, recorded: dict[str, Any]) -> tuple[Distillation, Layout, StatePlan]:
  """Returns the teacher, the mesh and the abstract state of a run; `recorded` is config.json of its newest step.

  Raises:
    ConfigError: the teacher is not the one of before, or something does not divide over the mesh.
  """
  distillation = Distillation.open(run, recorded.get('teacher'), begins=not recorded)
  layout = make_layout(run, others=distillation.models)
  return distillation, layout, plan_state(run, layout)


def open_run(
  run: RunConfig,
  store: CheckpointStore,
  profile: bool | Sequence[Window],
  stack: contextlib.ExitStack,
  beside: Sequence[Opened] = (),
) -> Opened:
  """Opens a run at the step that it continues from: the newest checkpoint, or 0.

  What costs nothing and can be wrong comes first: teacher, mesh, shapes. Then the data, whose vocabulary decides
  whether parameters fit; its thread makes batches while parameters are read. Files are touched last.

  Args:
    run: the whole configuration.
    store: its checkpoints.
    profile: see `train`.
    stack: closes what was opened, in the reverse order, also where this function fails half-way.
    beside: runs at the same step that differ in nothing but seed, learning rate, folder and initial checkpoint. What
      is equal is taken from them, of the same seed the batches too; only the first shows its progress.

  Raises:
    ConfigError: the run cannot work as configured.
  """
  first_step, is_first_host = store.latest_whole_step() or 0, jax.process_index() == 0
  like, same_data = None, None
  if beside:
    like, same_data = beside[0], next((o.source for o in beside if o.run.random_seed == run.random_seed), None)
  begins, progress = not first_step, Progress(active=is_first_host and like is None)
  stack.callback(progress.close)
  recorded = {} if begins else store.read_config(first_step)
  distillation, layout, plan = lay_out(run, recorded)
  if like is not None:
    layout, plan = like.layout, like.plan  # programs are found again by them
  axes = ' x '.join(f'{name} {size}' for name, size in layout.mesh.shape.items())
  progress.note(f'mesh: {axes} on {layout.mesh.size} {layout.mesh.devices.flat[0].device_kind} devices')
  params = _given_parameters(run, plan, progress) if begins else None
  for line in distillation.describe():
    progress.note(line)

  run = with_inherited_vocabulary(run, recorded)
  progress.note(f'data: {run.data.mixture_or_task_name}')
  rows, num_ids, decoder_only = layout.batch_sharding(), run.model.vocab_size, run.model.is_decoder_only
  source = same_data or data.open_training(run.data, run.random_seed, rows, num_ids, decoder_only)
  stack.callback(source.close)
  if source.description:
    progress.note(f'text: {source.description}')
  require_agreement('data', source.fingerprint)
  vocabulary = data.describe_vocabulary(source.vocabulary)
  _check_vocabulary(run, source.vocabulary_size)
  if params is not None:
    _check_same_vocabulary(run, vocabulary)
  distillation.check_vocabulary(vocabulary)
  sentinels = tuple(range(source.vocabulary_size - source.vocabulary.extra_ids, source.vocabulary_size))
  special_tokens = (*sentinels, source.vocabulary.eos_id)
  if not begins and same_data is None:
    store.restore_position(first_step, source.restore_position)
  if is_first_host:
    data.keep_vocabulary(source.vocabulary, run.model_dir)
  source.start()
  if like is None:
    held_out = data.open_evaluation(run.data, rows, run.eval_steps, num_ids, decoder_only)
  else:
    held_out = like.held_out
  task_metrics = open_task_metrics(run, layout) if run.task_metrics else None

  if params is None:
    params = distillation.initial_parameters(layout)
  lessons = distillation.lessons(layout, source.fingerprint, first_step)
  stack.callback(lessons.close)
  state = init_state(run, layout, plan, params) if begins else store.restore(first_step, plan.abstract)

  folder, task = ModelDir(run.model_dir), run.data.mixture_or_task_name
  trackers = Trackers(run if is_first_host else dataclasses.replace(run, trackers=()), progress.note)
  stack.callback(trackers.close)
  train_files, eval_files = (
    MetricFiles(place, active=is_first_host, beside=trackers.writer(name))
    for name, place in (('train', folder.train), ('held_out', folder.held_out(task)))
  )
  for files in (train_files, eval_files):
    stack.callback(files.close)
    files.truncate_after(-1 if begins else first_step)

  def flush() -> None:
    train_files.flush()
    eval_files.flush()

  store.before_commit = flush  # a run that continues from a step has the lines up to it
  device = layout.mesh.local_devices[0]
  reporter = Reporter(run, train_files, progress, lambda: source.wait_seconds, device, recorded.get('target_tokens', 0))
  profiler = Profiler(profile, folder.profile, first_step)
  stack.callback(profiler.close)
  evaluations = folder.read_held_out(task) if is_first_host else []
  metric = run.checkpoint.best_metric
  store.scores.update({line['step']: line[metric] for line in evaluations if metric in line})
  return Opened(
    run=run,
    store=store,
    layout=layout,
    plan=plan,
    state=state,
    first_step=first_step,
    batches=((batch, *lessons.arguments) for batch in lessons.beside(source)),
    source=source,
    held_out=held_out,
    sentinels=sentinels,
    special_tokens=special_tokens,
    train_step=compiled_by_all(make_train_step(run, layout, plan, special_tokens, lessons), 'training step'),
    eval_step=compiled_by_all(
      make_eval_step(run.model, layout, plan, special_tokens, len(held_out.groups), source.has_metrics), 'evaluation'
    ),
    task_metrics=task_metrics,
    are_finite=like.are_finite if like else compiled_by_all(make_finite_check(layout, plan), 'check of parameters'),
    record={
      'version': switch_jax.__version__,
      'parameters': parameter_count(plan.abstract.params),
      **distillation.record(lessons),
      'model': run.model.to_json(),
      'vocabulary': vocabulary,
      **({'template': source.template} if source.template else {}),
      'features': data.with_observed_eos(source.features, held_out.on_host, source.vocabulary.eos_id),
      'identity': run.identity(),
      'run': run.to_json(),
      'made_with': provenance([*layout.mesh.devices.flat]),
    },
    eval_files=eval_files,
    flush=flush,
    evaluated={line['step'] for line in evaluations},
    progress=progress,
    reporter=reporter,
    profiler=profiler,
  )


def restore_state(run: RunConfig, store: CheckpointStore, step: int) -> TrainState:
  """Reads the state of a step onto the mesh of a run that has nothing left to do."""
  _, _, plan = lay_out(run, store.read_config(step))
  return store.restore(step, plan.abstract)


def _given_parameters(run: RunConfig, plan: StatePlan, progress: Progress) -> Any:
  """Returns the parameters of `initial_checkpoint_path`, or None."""
  if not run.initial_checkpoint_path:
    return None
  progress.note(f'parameters to begin with: {run.initial_checkpoint_path}')
  return initial_parameters(run.initial_checkpoint_path, run.model, plan.abstract.params, run.upcycle)


def with_inherited_vocabulary(run: RunConfig, recorded: Mapping[str, Any] | None = None) -> RunConfig:
  """Returns a run on the user's tables with the vocabulary of the checkpoint that it goes on from or begins with.

  Args:
    run: the whole configuration.
    recorded: config.json of the run's newest step; empty or None if there is none.

  Raises:
    ConfigError: the checkpoint does not say which that is.
  """
  if run.data.tables is None or run.data.vocabulary is not None:
    return run
  path = run.initial_checkpoint_path
  if recorded:
    name = data.recorded_name(recorded['vocabulary'], run.model_dir)
  elif path is None:
    return run
  elif (name := inherited_vocabulary(path)) is None:
    raise ConfigError(
      f"{path} records no vocabulary (T5X's checkpoints do not, nor does a folder of Hugging Face without spiece.model "
      "and without our or ByT5's tokenizer); set --gin.VOCABULARY, to a copy of its SentencePiece model or to bytes."
    )
  return dataclasses.replace(run, data=dataclasses.replace(run.data, vocabulary=name))


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
