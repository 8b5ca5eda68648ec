"""The training run: set up, restore, loop, evaluate, save, sum up. Reads top down."""

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

import switch_jax
from switch_jax import data
from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import ConfigError, RunConfig, suggest
from switch_jax.distillation.student import Distillation
from switch_jax.folders.metric_lines import read_metrics
from switch_jax.folders.model_dir import METRICS_FILE
from switch_jax.interop import initial_parameters, recorded_vocabulary
from switch_jax.model import parameter_count
from switch_jax.model.placement import make_layout
from switch_jax.monitoring.interruption import EXIT_CODES, Interruption
from switch_jax.monitoring.loss_watch import DivergenceError
from switch_jax.monitoring.metric_files import MetricFiles
from switch_jax.monitoring.picture import save_picture
from switch_jax.monitoring.profiling import Profiler, Window
from switch_jax.monitoring.progress import Progress
from switch_jax.monitoring.reporting import Reporter
from switch_jax.monitoring.summary import RunFacts, summarize
from switch_jax.training.evaluation import EvaluationResult, evaluate
from switch_jax.training.state import TrainState, init_state, plan_state
from switch_jax.training.step import make_eval_step, make_finite_check, make_train_step

_SUMMARY = 'summary.png'


def train(
  run: RunConfig,
  *,
  config_gin: str = '',
  next_command: str | None = None,
  profile: bool | Sequence[Window] = False,
) -> int:
  """Trains until `run.train_steps`, continuing from the newest checkpoint of the MODEL_DIR.

  Args:
    run: the whole configuration.
    config_gin: the operative gin text, kept as `config.gin` in the MODEL_DIR for people to read.
    next_command: a command to suggest at the end.
    profile: steps to write profiles of for TensorBoard under `MODEL_DIR/profile`: first and last one of each; True
      for five steps a little after the beginning.

  Returns:
    The exit status: 0 when the run is finished, 143 after SIGTERM and 130 after Ctrl-C (saved, to be continued).

  Raises:
    ConfigError: the run cannot work as configured, the MODEL_DIR belongs to another one, a checkpoint or metrics cannot
      be written; or (`DivergenceError`) the loss is no number or has diverged.
  """
  store = CheckpointStore(run.model_dir, run.checkpoint)
  store.check_identity(run.identity())
  first_step = store.latest_step() or 0
  if first_step > run.train_steps or (first_step == run.train_steps and _is_summed_up(run)):
    _print(
      f'{run.model_dir} has all {run.train_steps:,} steps of this run (its newest checkpoint is step {first_step:,}); '
      'nothing to do.\nTrain on with a larger --gin.TRAIN_STEPS, or start anew with another --gin.MODEL_DIR.'
    )
    return 0
  session = _Session(run, store, first_step, next_command, profile)
  try:
    if config_gin and jax.process_index() == 0:
      (epath.Path(run.model_dir) / 'config.gin').write_text(config_gin)
    return session.run_to_end()
  except DivergenceError as error:
    raise session.explained(error) from None
  except OSError as error:
    raise ConfigError(
      f'{run.model_dir} can no longer be written to: {error}. See to the cause (free space and rights on the disk, '
      'say) and run the same command again to continue from the newest checkpoint.'
    ) from error
  finally:
    session.close()


def _is_summed_up(run: RunConfig) -> bool:
  """Whether a run that has all its steps has its last evaluation too; one killed meanwhile still needs it."""
  lines = read_metrics(_folder(run, 'eval') / METRICS_FILE)
  return bool(lines) and lines[-1]['step'] == run.train_steps and (epath.Path(run.model_dir) / _SUMMARY).exists()


def _folder(run: RunConfig, kind: str) -> epath.Path:
  """Returns `MODEL_DIR/train` or `MODEL_DIR/eval/<task>`."""
  folder = epath.Path(run.model_dir) / kind
  return folder / run.data.mixture_or_task_name if kind == 'eval' else folder


def _check_same_vocabulary(run: RunConfig, vocabulary: dict[str, Any]) -> None:
  """Raises a `ConfigError` if the parameters to begin with were trained on ids that mean something else."""
  recorded = recorded_vocabulary(run.initial_checkpoint_path) or {}
  if recorded.get('digest', vocabulary['digest']) != vocabulary['digest']:
    raise ConfigError(
      f'{run.initial_checkpoint_path} was trained with the vocabulary {recorded.get("name")} of {recorded["size"]} '
      f'ids, and {run.data.mixture_or_task_name} has {vocabulary["name"]} of {vocabulary["size"]}: the same ids mean '
      'other pieces. Set --gin.VOCABULARY to the one of the checkpoint; its MODEL_DIR may hold it as vocabulary.model.'
    )


class _Session:
  """One process's share of a run: everything that is open while it trains."""

  def __init__(
    self,
    run: RunConfig,
    store: CheckpointStore,
    first_step: int,
    next_command: str | None,
    profile: bool | Sequence[Window],
  ):
    self.run, self.store, self.first_step, self.next_command = run, store, first_step, next_command
    self.began = time.perf_counter()
    self.is_first_host = jax.process_index() == 0
    self.progress = Progress(active=self.is_first_host)
    recorded = store.read_config(first_step) if first_step else {}
    self.distillation = Distillation.open(run, recorded.get('teacher'), begins=not first_step)
    layout = make_layout(run, others=self.distillation.models if self.distillation else ())
    axes = ' x '.join(f'{name} {size}' for name, size in layout.mesh.shape.items())
    self.progress.note(f'mesh: {axes} on {layout.mesh.size} {layout.mesh.devices.flat[0].device_kind} devices')
    plan = plan_state(run, layout)
    params = None
    if run.initial_checkpoint_path and not first_step:
      self.progress.note(f'parameters to begin with: {run.initial_checkpoint_path}')
      params = initial_parameters(run.initial_checkpoint_path, run.model, plan.abstract.params, run.upcycle)
    if self.distillation:
      for line in self.distillation.describe():
        self.progress.note(line)
    self.progress.note(f'data: {run.data.mixture_or_task_name}')
    self.source = data.open_training(run.data, run.random_seed, layout.batch_sharding())
    vocabulary = self.source.vocabulary
    if self.source.vocabulary_size > run.model.vocab_size:
      raise ConfigError(
        f'ModelConfig.vocab_size is {run.model.vocab_size} and the vocabulary of {run.data.mixture_or_task_name} has '
        f'{self.source.vocabulary_size} ids; the embedding needs a row for each. Set vocab_size to at least that.'
      )
    if params is not None:
      _check_same_vocabulary(run, data.describe_vocabulary(vocabulary))
    if self.distillation:
      self.distillation.check_vocabulary(data.describe_vocabulary(vocabulary))
    self.sentinels = tuple(range(self.source.vocabulary_size - vocabulary.extra_ids, self.source.vocabulary_size))
    special_tokens = (*self.sentinels, vocabulary.eos_id)
    if first_step:
      store.restore_position(first_step, self.source.restore_position)
    if self.is_first_host:
      data.keep_vocabulary(vocabulary, run.model_dir)
    self.source.start()
    self.held_out = data.open_evaluation(run.data, layout.batch_sharding(), run.eval_steps)
    if self.distillation:
      params = self.distillation.initial_parameters(layout) if params is None else params
      self.distillation.load(layout, self.source.fingerprint, first_step)
    if first_step:
      self.state: TrainState = store.restore(first_step, plan.abstract)
    else:
      self.state = init_state(run, layout, plan, params)
    self.train_step = make_train_step(run, layout, plan, special_tokens, self.distillation)
    self.teacher = self.distillation.step_arguments if self.distillation else ()
    self.eval_step = make_eval_step(run.model, layout, plan, special_tokens, len(self.held_out.groups))
    self.are_finite = make_finite_check(layout, plan)
    self.train_files = MetricFiles(_folder(self.run, 'train'), active=self.is_first_host)
    self.eval_files = MetricFiles(_folder(self.run, 'eval'), active=self.is_first_host)
    for files in (self.train_files, self.eval_files):
      files.truncate_after(first_step if first_step else -1)
    device = layout.mesh.local_devices[0]
    self.reporter = Reporter(run, self.train_files, self.progress, lambda: self.source.wait_seconds, device)
    self.profiler = Profiler(profile, epath.Path(run.model_dir) / 'profile', first_step)
    self.evaluated = self._read_scores()
    if first_step:
      self.reporter.target_tokens = recorded['target_tokens']

  def _read_scores(self) -> set[int]:
    """Hands the evaluations of earlier processes to the checkpoint policy; returns their steps."""
    lines = read_metrics(_folder(self.run, 'eval') / METRICS_FILE) if self.is_first_host else []
    metric = self.run.checkpoint.best_metric
    self.store.scores.update({line['step']: line[metric] for line in lines if metric in line})
    return {line['step'] for line in lines}

  def run_to_end(self) -> int:
    """Loops over the steps; returns the exit status."""
    run, step, result = self.run, self.first_step, None
    if step:
      self.progress.note(f'continuing from the checkpoint of step {step:,}')
    if self._evaluation_is_missing(step):
      result = self._evaluate(step)
    self.progress.note('compiling the training step')
    self.progress.start(step, run.train_steps)
    with Interruption() as interruption:
      while step < run.train_steps:
        self.profiler.before(step + 1)
        self.state, metrics = self.train_step(self.state, self._next_batch(), *self.teacher)
        step += 1
        self.reporter.add(step, metrics)
        self.profiler.after(step, metrics)
        stop = interruption.requested(step)
        last = step == run.train_steps
        if last or stop or step % run.checkpoint.period == 0:
          self._save(step)
        if self._is_evaluated(step) and (last or not stop):
          result = self._evaluate(step)
        if stop and not last:
          return self._stopped(step, stop)
    self.store.wait()
    self.progress.close()
    self._sum_up(result or self._evaluate(step))
    return 0

  def _next_batch(self) -> dict[str, jax.Array]:
    """Returns the next batch, with the teacher's distributions where they come from files."""
    batch = next(self.source)
    return self.distillation.with_targets(batch) if self.distillation else batch

  def _is_evaluated(self, step: int) -> bool:
    """Whether the held-out loss is measured after this step."""
    period = self.run.eval_period
    return step in (0, self.run.train_steps) or bool(period and step % period == 0)

  def _evaluation_is_missing(self, step: int) -> bool:
    """Whether the process that saved this step was stopped before it had evaluated it. All hosts get one answer."""
    if not self._is_evaluated(step):
      return False
    if jax.process_count() == 1:
      return step not in self.evaluated
    return bool(multihost_utils.broadcast_one_to_all(np.int32(step not in self.evaluated)))

  def _save(self, step: int) -> None:
    """Saves state and data position if the step is sound; the arrays are written in the background."""
    self.reporter.stop_clock()  # reports this step, and ends the run here if its loss or gradient is not finite
    if not bool(self.are_finite(self.state.params)):
      raise DivergenceError(f'parameters are not finite after step {step:,}, whose gradient was.', step)
    self.store.save(step, self.state, self._config_json(), self.source.save_position)
    self.reporter.resume_clock()

  def explained(self, error: DivergenceError) -> DivergenceError:
    """Adds to an error what can be done about it."""
    with contextlib.suppress(ConfigError):  # the older checkpoints are what is asked for
      self.store.wait()
    good = [step for step in self.store.steps() if step < error.began]
    where = 'No checkpoint was saved before it.'
    if good:
      where = f'The last good checkpoint is step {good[-1]:,}, {self.store.path(good[-1])}.'
    return DivergenceError(
      f'{error} {where} The same command would come to the same point again: begin another --gin.MODEL_DIR with other '
      'settings (a lower LEARNING_RATE, config.OptimizerConfig.max_grad_norm=1.0, a longer warm-up)'
      + (f' and --gin.INITIAL_CHECKPOINT_PATH={self.store.path(good[-1])}.' if good else '.'),
      error.began,
    )

  def _config_json(self) -> dict[str, Any]:
    """Returns what a checkpoint records of its run: enough to load the model without gin."""
    return {
      'version': switch_jax.__version__,
      'target_tokens': self.reporter.target_tokens,
      'parameters': parameter_count(self.state.params),
      **({'teacher': self.distillation.record()} if self.distillation else {}),
      'model': self.run.model.to_json(),
      'vocabulary': data.describe_vocabulary(self.source.vocabulary),
      'identity': self.run.identity(),
      'run': self.run.to_json(),
    }

  def _evaluate(self, step: int) -> EvaluationResult:
    """Measures the held-out loss and writes it."""
    self.reporter.stop_clock()
    if step == self.first_step:
      self.progress.note('evaluating before training')
    result = evaluate(self.eval_step, self.state.params, self.held_out)
    self._score(step, result.metrics)
    self.eval_files.write(step, result.metrics)
    loss = result.metrics['cross_ent_loss_text']
    self.progress.note(f'held-out loss after {step:,} steps: {loss:.3f} nats per target token, sentinels left out')
    self.reporter.resume_clock()
    return result

  def _score(self, step: int, metrics: dict[str, float]) -> None:
    """Hands an evaluation to the checkpoint policy."""
    policy = self.run.checkpoint
    if policy.keep_best and policy.best_metric not in metrics:
      raise ConfigError(
        f'CheckpointConfig.best_metric is {policy.best_metric!r}, which an evaluation does not give; it gives '
        f'{", ".join(sorted(name for name in metrics if "/" not in name))}.{suggest(policy.best_metric, metrics)}'
      )
    self.store.scores[step] = metrics.get(policy.best_metric, math.nan)

  def _stopped(self, step: int, signal: str) -> int:
    """Says where an interrupted run stands; returns its exit status."""
    self.reporter.flush()
    self.store.wait()
    self.progress.close()
    _print(f'{signal}: saved step {step:,} in {self.store.path(step)}; the same command continues from there.')
    return EXIT_CODES[signal]

  def _sum_up(self, result: EvaluationResult) -> None:
    """Prints the summary and draws the picture of a finished run."""
    if not self.is_first_host:
      return
    train, held_out = (read_metrics(_folder(self.run, kind) / METRICS_FILE) for kind in ('train', 'eval'))
    entropies = data.target_entropies(self.held_out.on_host, self.sentinels)
    picture = epath.Path(self.run.model_dir) / _SUMMARY
    save_picture(
      picture,
      train=train,
      held_out=held_out,
      yardsticks={'unigram entropy': entropies.unigram, 'bigram entropy': entropies.bigram},
      expert_tokens=result.expert_tokens,
      title=f'{self.run.data.mixture_or_task_name}, {self.run.train_steps:,} steps',
      train_key='cross_ent_loss_text',
      held_out_key='cross_ent_loss_text',
    )
    facts = RunFacts(
      steps=self.run.train_steps,
      seconds=time.perf_counter() - self.began,
      target_tokens=self.reporter.target_tokens,
      held_out_before=held_out[0]['cross_ent_loss_text'] if held_out[0]['step'] == 0 else None,
      held_out_after=result.metrics['cross_ent_loss_text'],
      unigram_entropy=entropies.unigram,
      bigram_entropy=entropies.bigram,
      fraction_dropped=train[-1].get('fraction_dropped'),
      expert_tokens=result.expert_tokens,
      files={
        'picture': str(picture),
        'checkpoint': str(epath.Path(self.run.model_dir) / 'checkpoints' / str(self.run.train_steps)),
        'metrics': str(_folder(self.run, 'train') / METRICS_FILE),
        'TensorBoard': f'tensorboard --logdir {self.run.model_dir}',
      },
      next_command=self.next_command,
    )
    _print('\n' + summarize(facts))

  def close(self) -> None:
    """Stops the threads and closes the files."""
    self.profiler.close()
    self.progress.close()
    self.source.close()
    if self.distillation:
      self.distillation.close()
    self.train_files.close()
    self.eval_files.close()
    self.store.close()


def _print(text: str) -> None:
  if jax.process_index() == 0:
    print(text, flush=True)
