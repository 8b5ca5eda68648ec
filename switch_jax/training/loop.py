"""The training run: open, loop, evaluate, save, sum up. Takes a configuration and gives a result; reads top down."""

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import ConfigError, RunConfig, first_line
from switch_jax.folders.model_dir import ModelDir
from switch_jax.folders.remote import is_storage_error
from switch_jax.monitoring.loss_watch import DivergenceError
from switch_jax.monitoring.profiling import Window
from switch_jax.monitoring.summary import RunFacts
from switch_jax.training.opening import open_run, open_store, record_beginning, restore_state
from switch_jax.training.progression import Member, OneModel, Reason, run_to_end
from switch_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
  """What training came to.

  Attributes:
    state: parameters and optimizer state on the mesh, at `step`; saved in `model_dir.step(step)` too.
    step: updates made, those of earlier processes included.
    metrics: the last line of `train/metrics.jsonl`.
    held_out: the last line of the held-out metrics; losses in nats per target token. Empty before the first.
    reason: why it ended: all steps are done (`finished`), or were before (`nothing to do`); or the signal after which
      it stopped (`SIGTERM`, `SIGINT`), to be continued by training again.
    model_dir: where things lie.
    facts: the summary of a run that has finished here, on the first host; `monitoring.summary.summarize` prints it.
  """

  state: TrainState
  step: int
  metrics: Mapping[str, float]
  held_out: Mapping[str, float]
  reason: Reason
  model_dir: ModelDir
  facts: RunFacts | None = None


def train(run: RunConfig, *, config_gin: str = '', profile: bool | Sequence[Window] = False) -> TrainResult:
  """Trains until `run.train_steps`, continuing from the newest checkpoint of the MODEL_DIR.

  Everything that was opened is closed again, threads included, however it ends.

  Args:
    run: the whole configuration.
    config_gin: the operative gin text, kept as `config.gin` in the MODEL_DIR for people to read.
    profile: steps to write profiles of for TensorBoard under `MODEL_DIR/profile`: first and last one of each; True
      for five steps a little after the beginning.

  Returns:
    The result, also where a first SIGTERM or Ctrl-C has ended it: its step is saved.

  Raises:
    ConfigError: the run cannot work as configured, the MODEL_DIR belongs to another one or to a living process, a
      checkpoint or metrics cannot be written; or (`DivergenceError`) the loss is no number or has diverged.
    KeyboardInterrupt: a second Ctrl-C, which does not wait for the step.
  """
  began = time.perf_counter()
  with contextlib.ExitStack() as stack:
    # First, so that it hears what all others say when they close.
    storage = stack.enter_context(Storage(run.model_dir))
    store, claim = open_store(run, stack)
    if (step := step_at_the_end(run, store)) is not None:
      return result_of(run, restore_state(run, store, step), step, 'nothing to do')
    opened = open_run(run, store, profile, stack)
    member, models = Member(0, opened, claim), OneModel(opened)
    storage.is_written_to = True
    record_beginning(run, config_gin)
    reason = run_to_end([member], models)
    if member.error:
      raise explained(member.error, store)
    facts = member.sum_up(models, began) if reason == 'finished' else None
    opened.flush()
  return result_of(run, models.state(0), member.step, reason, facts)


class Storage(contextlib.AbstractContextManager):
  """A context in which what a disk or store says of a MODEL_DIR is the user's error, once it is written to."""

  def __init__(self, model_dir: str):
    self._model_dir, self.is_written_to = model_dir, False

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
  ) -> None:
    if self.is_written_to and isinstance(error, Exception) and is_storage_error(error):
      raise ConfigError(
        f'{self._model_dir} can no longer be written to: {_cause(error)}. See to the cause (free space and rights on '
        'the disk, say) and run the same command again to continue from the newest checkpoint.'
      ) from error


def _cause(error: Exception) -> str:
  return str(error) if isinstance(error, OSError) else first_line(error)


def finished_step(run: RunConfig) -> int | None:
  """Returns the newest step of a MODEL_DIR that has all steps of this run and its last evaluation; None otherwise.

  Nothing is written, whoever owns the folder.

  Raises:
    ConfigError: the MODEL_DIR belongs to another run.
  """
  store = CheckpointStore(run.model_dir)
  if not (steps := store.steps()) or steps[-1] < run.train_steps:
    return None
  store.check_identity(run.identity())
  return step_at_the_end(run, store)


def step_at_the_end(run: RunConfig, store: CheckpointStore) -> int | None:
  """As `finished_step`; a run that was killed during its last evaluation still needs it."""
  step, folder = store.latest_whole_step() or 0, ModelDir(run.model_dir)
  if step != run.train_steps:
    return step if step > run.train_steps else None
  lines = folder.read_held_out(run.data.mixture_or_task_name)
  is_summed_up = bool(lines) and lines[-1]['step'] == step and folder.summary.exists()
  return step if is_summed_up else None


def result_of(
  run: RunConfig, state: TrainState, step: int, reason: Reason, facts: RunFacts | None = None
) -> TrainResult:
  """Returns the result of a run with the last of its metrics."""
  folder = ModelDir(run.model_dir)
  metrics, held_out = folder.read_train(), folder.read_held_out(run.data.mixture_or_task_name)
  return TrainResult(
    state=state,
    step=step,
    metrics=metrics[-1] if metrics else {},
    held_out=held_out[-1] if held_out else {},
    reason=reason,
    model_dir=folder,
    facts=facts,
  )


def explained(error: DivergenceError, store: CheckpointStore) -> DivergenceError:
  """Adds to an error what can be done about it."""
  with contextlib.suppress(ConfigError):  # the older checkpoints are what is asked for
    store.wait()
  good = [step for step in store.steps() if step < error.began]
  where = 'No checkpoint was saved before it.'
  if good:
    where = f'The last good checkpoint is step {good[-1]:,}, {store.path(good[-1])}.'
  return DivergenceError(
    f'{error} {where} The same command would come to the same point again: begin another --gin.MODEL_DIR with other '
    'settings (a lower LEARNING_RATE, config.OptimizerConfig.max_grad_norm=1.0, a longer warm-up)'
    + (f' and --gin.INITIAL_CHECKPOINT_PATH={store.path(good[-1])}.' if good else '.'),
    error.began,
  )
