"""The training run: set up, restore, loop, evaluate, save, sum up. Reads top down."""

import time
from typing import Any

import jax
from etils import epath

import switch_jax
from switch_jax import data
from switch_jax.checkpoints import CheckpointStore
from switch_jax.config import ConfigError, RunConfig
from switch_jax.interop import initial_parameters
from switch_jax.training.description import make_layout
from switch_jax.training.evaluation import EvaluationResult, evaluate
from switch_jax.training.interruption import EXIT_CODES, Interruption
from switch_jax.training.metric_files import METRICS_FILE, MetricFiles, read_metrics
from switch_jax.training.picture import save_picture
from switch_jax.training.progress import Progress
from switch_jax.training.reporting import Reporter
from switch_jax.training.state import TrainState, init_state, plan_state
from switch_jax.training.step import make_eval_step, make_train_step
from switch_jax.training.summary import RunFacts, summarize


def train(run: RunConfig, *, config_gin: str = '', next_command: str | None = None, profile: bool = False) -> int:
  """Trains until `run.train_steps`, continuing from the newest checkpoint of the MODEL_DIR.

  Args:
    run: the whole configuration.
    config_gin: the operative gin text, kept as `config.gin` in the MODEL_DIR for people to read.
    next_command: a command to suggest at the end.
    profile: write a profile of a few steps for TensorBoard under `MODEL_DIR/profile`.

  Returns:
    The exit status: 0 when the run is finished, 143 after SIGTERM and 130 after Ctrl-C (saved, to be continued).

  Raises:
    ConfigError: the run cannot work as configured, or the MODEL_DIR belongs to another one.
  """
  store = CheckpointStore(run.model_dir, run.checkpoint)
  store.check_identity(run.identity())
  first_step = store.latest_step() or 0
  if first_step >= run.train_steps:
    _print(
      f'{run.model_dir} has all {run.train_steps:,} steps of this run (its newest checkpoint is step {first_step:,}); '
      'nothing to do.\nTrain on with a larger --gin.TRAIN_STEPS, or start anew with another --gin.MODEL_DIR.'
    )
    return 0
  session = _Session(run, store, first_step, next_command)
  try:
    if config_gin and jax.process_index() == 0:
      (epath.Path(run.model_dir) / 'config.gin').write_text(config_gin)
    return session.run_to_end(profile)
  finally:
    session.close()


class _Session:
  """One process's share of a run: everything that is open while it trains."""

  def __init__(self, run: RunConfig, store: CheckpointStore, first_step: int, next_command: str | None):
    self.run, self.store, self.first_step, self.next_command = run, store, first_step, next_command
    self.began = time.perf_counter()
    self.is_first_host = jax.process_index() == 0
    self.progress = Progress(active=self.is_first_host)
    layout = make_layout(run)
    axes = ' x '.join(f'{name} {size}' for name, size in layout.mesh.shape.items())
    self.progress.note(f'mesh: {axes} on {layout.mesh.size} {layout.mesh.devices.flat[0].device_kind} devices')
    plan = plan_state(run, layout)
    params = None
    if run.initial_checkpoint_path and not first_step:
      self.progress.note(f'parameters to begin with: {run.initial_checkpoint_path}')
      params = initial_parameters(run.initial_checkpoint_path, run.model, plan.abstract.params, run.upcycle)
    self.progress.note(f'data: {run.data.mixture_or_task_name}')
    self.source = data.open_training(run.data, run.random_seed, layout.batch_sharding())
    vocabulary = self.source.vocabulary
    if self.source.vocabulary_size > run.model.vocab_size:
      raise ConfigError(
        f'ModelConfig.vocab_size is {run.model.vocab_size} and the vocabulary of {run.data.mixture_or_task_name} has '
        f'{self.source.vocabulary_size} ids; the embedding needs a row for each. Set vocab_size to at least that.'
      )
    self.sentinels = tuple(range(self.source.vocabulary_size - vocabulary.extra_ids, self.source.vocabulary_size))
    special_tokens = (*self.sentinels, vocabulary.eos_id)
    if first_step:
      store.restore_position(first_step, self.source.restore_position)
    if self.is_first_host:
      data.keep_vocabulary(vocabulary, run.model_dir)
    self.source.start()
    self.held_out = data.open_evaluation(run.data, layout.batch_sharding(), run.eval_steps)
    if first_step:
      self.state: TrainState = store.restore(first_step, plan.abstract)
    else:
      self.state = init_state(run, layout, plan, params)
    self.train_step = make_train_step(run, layout, plan, special_tokens)
    self.eval_step = make_eval_step(run.model, layout, plan, special_tokens)
    self.train_files = MetricFiles(self._folder('train'), active=self.is_first_host)
    self.eval_files = MetricFiles(self._folder('eval'), active=self.is_first_host)
    for files in (self.train_files, self.eval_files):
      files.truncate_after(first_step if first_step else -1)
    self.reporter = Reporter(run, self.train_files, self.progress, lambda: self.source.wait_seconds)
    if first_step:
      self.reporter.target_tokens = store.read_config(first_step)['target_tokens']

  def _folder(self, kind: str) -> epath.Path:
    """Returns `MODEL_DIR/train` or `MODEL_DIR/eval/<task>`."""
    folder = epath.Path(self.run.model_dir) / kind
    return folder / self.run.data.mixture_or_task_name if kind == 'eval' else folder

  def run_to_end(self, profile: bool) -> int:
    """Loops over the steps; returns the exit status."""
    run, step = self.run, self.first_step
    if step:
      self.progress.note(f'continuing from the checkpoint of step {step:,}')
    else:
      self._evaluate(0)
    self.progress.note('compiling the training step')
    self.progress.start(step, run.train_steps)
    with Interruption() as interruption:
      while step < run.train_steps:
        if profile and step == self.first_step + 5:
          jax.profiler.start_trace(str(epath.Path(run.model_dir) / 'profile'))
        self.state, metrics = self.train_step(self.state, next(self.source))
        step += 1
        self.reporter.add(step, metrics)
        if profile and step == self.first_step + 10:
          jax.block_until_ready(metrics)
          jax.profiler.stop_trace()
        stop = interruption.requested(step)
        last = step == run.train_steps
        if last or stop or step % run.checkpoint.period == 0:
          self._save(step)
        if last or (run.eval_period and step % run.eval_period == 0 and not stop):
          result = self._evaluate(step)
        if stop and not last:
          return self._stopped(step, stop)
    self.store.wait()
    self.progress.close()
    self._sum_up(result)
    return 0

  def _save(self, step: int) -> None:
    """Saves state and data position; the arrays are written in the background."""
    self.reporter.stop_clock()
    self.store.save(step, self.state, self._config_json(), self.source.save_position)
    self.reporter.resume_clock()

  def _config_json(self) -> dict[str, Any]:
    """Returns what a checkpoint records of its run: enough to load the model without gin."""
    return {
      'version': switch_jax.__version__,
      'target_tokens': self.reporter.target_tokens,
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
    self.eval_files.write(step, result.metrics)
    loss = result.metrics['cross_ent_loss_text']
    self.progress.note(f'held-out loss after {step:,} steps: {loss:.3f} nats per target token, sentinels left out')
    self.reporter.resume_clock()
    return result

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
    train, held_out = (read_metrics(self._folder(kind) / METRICS_FILE) for kind in ('train', 'eval'))
    entropies = data.target_entropies(self.held_out.on_host, self.sentinels)
    picture = epath.Path(self.run.model_dir) / 'summary.png'
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
        'metrics': str(self._folder('train') / METRICS_FILE),
        'TensorBoard': f'tensorboard --logdir {self.run.model_dir}',
      },
      next_command=self.next_command,
    )
    _print('\n' + summarize(facts))

  def close(self) -> None:
    """Stops the threads and closes the files."""
    self.progress.close()
    self.source.close()
    self.train_files.close()
    self.eval_files.close()
    self.store.close()


def _print(text: str) -> None:
  if jax.process_index() == 0:
    print(text, flush=True)
