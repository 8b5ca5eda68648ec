"""How it is run: data, optimizer, checkpoints, and the whole run."""

import dataclasses
from typing import Any, Literal

from switch_jax.config.distillation import DistillationConfig
from switch_jax.config.identity import identity_of
from switch_jax.config.mesh import MeshConfig
from switch_jax.config.model import ModelConfig
from switch_jax.config.named_objects import is_object_name, known_or_object
from switch_jax.config.table import TableConfig
from switch_jax.config.upcycle import UpcycleConfig
from switch_jax.config.validation import Checked, ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
  """What goes in: a SeqIO task or mixture, its lengths, and how batches are made of it.

  Attributes:
    mixture_or_task_name: a name in SeqIO's registry once `task_module` is imported.
    task_module: the Python module that registers it (imported only after the configuration has been checked). A
      function `register(data)` in it, if there is one, is called with this configuration.
    train_split, eval_split: splits of the task that are trained on, and that the held-out loss and metrics come from.
    feature_lengths: tokens of `inputs` and `targets` in a row of the batch. A decoder-only model has both in one row,
      one after the other; or `targets` alone, of a task without inputs.
    batch_size: rows of the global batch.
    num_data_shards: logical streams that are shuffled and packed alone; a multiple of the number of hosts. It is
      part of the data's identity, the number of hosts is not.
    vocabulary: 'bytes' ('byt5' and 'byt5_huggingface': with the sentinels of ByT5), or the path of a SentencePiece
      model in T5's layout (`gs://` too), for the task modules that can use any; None is the task's own choice.
    text_files: glob pattern of the user's own text files (`switch_jax.tasks.text_files`), for the task modules that
      read them.
    undecodable: whether such text with bytes that are no UTF-8 is refused, or these are replaced by U+FFFD.
    tables: tables of the user's own labels, each a task, for the task module `switch_jax.tasks.table_files`.
    languages: codes of the languages to read, for the task modules with languages; None reads all they have.
    sampling_exponent: a language is drawn with a probability proportional to its size to this power, for the same task
      modules; None is theirs, 0.3 as in mT5. 1 draws in proportion to the sizes, 0 draws all alike.
    cached_tasks_dir: where that lies; local or `gs://`. None is where SeqIO looks anyway.
    loss_on_targets_only: of a decoder-only model: whether the inputs in a row are given, or have to be predicted too.
    pack: put several short examples into a row of training, each attending to itself alone; else each has its own.
    shuffle: draw the examples of training in a new order in every epoch; else they come as the source has them.
    use_cached_tasks: read what SeqIO's `seqio_cache_tasks` has written into `cached_tasks_dir`.
    shuffle_buffer_size: examples held for shuffling in each stream.
    prefetch: batches prepared ahead of the step.
  """

  mixture_or_task_name: str
  feature_lengths: dict[str, int]
  batch_size: int
  task_module: str | None = None
  train_split: str = 'train'
  eval_split: str = 'validation'
  num_data_shards: int = 1
  vocabulary: str | None = None
  text_files: str | None = None
  undecodable: Literal['refuse', 'replace'] = 'refuse'
  tables: tuple[TableConfig, ...] | None = None
  languages: tuple[str, ...] | None = None
  sampling_exponent: float | None = None
  use_cached_tasks: bool = False
  cached_tasks_dir: str | None = None
  loss_on_targets_only: bool = True
  pack: bool = True
  shuffle: bool = True
  shuffle_buffer_size: int = 1000
  prefetch: int = 2

  def __post_init__(self) -> None:
    super().__post_init__()
    rule = "it must be 'bytes' or the path of a SentencePiece model; leave it None for the task's own."
    self.require(self.vocabulary != '', 'vocabulary', rule)
    rule = "it must name languages by their codes, each once, as ('de', 'fr'); None is all that the task has."
    named = self.languages
    self.require(named is None or 0 < len(named) == len(set(named)), 'languages', rule)
    rule = 'it must be from 0 (all languages alike) to 1 (in proportion to their sizes).'
    self.require(self.sampling_exponent is None or 0 <= self.sampling_exponent <= 1, 'sampling_exponent', rule)
    names = [table.name for table in self.tables or ()]
    rule = 'it must name at least one table, and each task must have a name of its own (config.TableConfig.name).'
    self.require(self.tables is None or 0 < len(names) == len(set(names)), 'tables', rule)
    self.require_at_least(1, 'batch_size', 'num_data_shards', 'shuffle_buffer_size', 'prefetch')
    rule = 'it is only read with use_cached_tasks=True; set --gin.USE_CACHED_TASKS=True, or leave it None.'
    self.require(self.use_cached_tasks or self.cached_tasks_dir is None, 'cached_tasks_dir', rule)
    rule = (
      "it must give the lengths of exactly these features, as {'inputs': 512, 'targets': 114}; or of targets alone, as "
      "{'targets': 512}, for a decoder-only model and a task without inputs."
    )
    self.require(set(self.feature_lengths) in ({'inputs', 'targets'}, {'targets'}), 'feature_lengths', rule)
    self.require(min(self.feature_lengths.values()) >= 1, 'feature_lengths', 'lengths must be at least 1.')
    rule = f'the {self.batch_size} rows of the batch must divide into it; use a divisor of {self.batch_size}.'
    self.require(self.batch_size % self.num_data_shards == 0, 'num_data_shards', rule)


_OPTIMIZERS = ('adafactor', 'adamw')
# Schedules that come down, and how.
_DECAYS = {'linear': 'linear', 'cosine': 'cosine', 'warmup_stable_decay': 'linear'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
  """Adafactor as T5X's, or AdamW, and the learning-rate schedule.

  Attributes:
    name: `adafactor`, `adamw`, or one of your own as `module:function`, which is called with this configuration and the
      schedule (a function of the step) and returns an optax `GradientTransformation` that has the learning rate in it.
      Of the settings below only `max_grad_norm` is applied for it.
    learning_rate: with `rsqrt` the factor before 1 / sqrt(max(step, warmup_steps)), else the peak rate.
    schedule: `rsqrt` (no ramp, flat during warm-up, as T5); or a ramp up in `warmup_steps`, and then `constant`;
      `linear` or `cosine`, down until `decay_steps`; `warmup_stable_decay`, constant until `decay_begin` and then
      linearly down until `decay_steps`. Or your own as `module:function`, which is called with this configuration and
      returns a function from the step to the rate.
    warmup_steps: steps in which the rate rises from 0 to `learning_rate`, or with `rsqrt` stays where it begins.
    decay_begin: the step that `warmup_stable_decay` begins to go down at.
    decay_steps: the step, counted from the beginning of the run, at which the rate has come down; it stays there.
    final_fraction: what is left of `learning_rate` then.
    decay_rate: Adafactor's second-moment decay is 1 - t ** -decay_rate.
    multiply_by_parameter_scale: Adafactor's updates are relative to the root mean square of each parameter.
    clip_threshold: Adafactor's bound of the root mean square of an update.
    min_dim_size_to_factor: Adafactor factors the second moments of matrices whose two sides are at least this long.
    factor_experts: whether those of experts are factored `always`, as T5X does (where a stack is, it has no size rule),
      or `by_size` like any matrix, as the paper's code. Only then is one narrow expert trained as a dense network is.
    beta1, beta2: AdamW's decay of the mean of gradients and of their squares.
    epsilon: AdamW's term that keeps the division by the root of the second from failing.
    weight_decay: this times each parameter is added to its update, which the learning rate then multiplies.
    max_grad_norm: global-norm clipping; None is off.
  """

  name: Literal['adafactor', 'adamw'] | str = 'adafactor'
  learning_rate: float = 1.0
  schedule: Literal['rsqrt', 'constant', 'linear', 'cosine', 'warmup_stable_decay'] | str = 'rsqrt'
  warmup_steps: int = 10_000
  decay_begin: int | None = None
  decay_steps: int | None = None
  final_fraction: float = 0.0
  decay_rate: float = 0.8
  clip_threshold: float = 1.0
  multiply_by_parameter_scale: bool = True
  min_dim_size_to_factor: int = 128
  factor_experts: Literal['always', 'by_size'] = 'always'
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  weight_decay: float = 0.0
  max_grad_norm: float | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require_positive('learning_rate', 'decay_rate', 'clip_threshold', 'epsilon', 'max_grad_norm')
    self.require_at_least(0, 'warmup_steps', 'weight_decay')
    self.require_at_least(1, 'min_dim_size_to_factor', 'decay_steps')
    self.require_rate('beta1', 'beta2')
    for name, known in (('name', _OPTIMIZERS), ('schedule', ('rsqrt', 'constant', *_DECAYS))):
      value = getattr(self, name)
      self.require(value in known or is_object_name(value), name, known_or_object(known, value))
    if self.schedule == 'rsqrt':
      self.require(self.warmup_steps >= 1, 'warmup_steps', '1 / sqrt(step) needs at least 1 step of warm-up.')
    if self.schedule in _DECAYS:
      rule = f'a {_DECAYS[self.schedule]} decay needs its last step, greater than warmup_steps={self.warmup_steps}.'
      self.require(self.decay_steps is not None and self.decay_steps > self.warmup_steps, 'decay_steps', rule)
    if self.schedule == 'warmup_stable_decay':
      rule = f'it must be from warmup_steps={self.warmup_steps} on, and less than decay_steps={self.decay_steps}.'
      begin = self.decay_begin
      self.require(begin is not None and self.warmup_steps <= begin < (self.decay_steps or 0), 'decay_begin', rule)
    elif not is_object_name(self.schedule):
      rule = f"it is for schedule='warmup_stable_decay', and that is {self.schedule!r}; leave it None."
      self.require(self.decay_begin is None, 'decay_begin', rule)
    self.require(0 <= self.final_fraction <= 1, 'final_fraction', 'it must be from 0 to 1.')
    if self.schedule in ('rsqrt', 'constant'):
      rule = f'the schedule {self.schedule!r} does not come down; leave it 0.0.'
      self.require(self.final_fraction == 0, 'final_fraction', rule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Checked):
  """The language-model loss: cross-entropy in nats, label smoothing, and z-loss on the output logits.

  Attributes:
    z_loss: weight of the squared logarithm of the softmax's denominator; 0 is off.
    label_smoothing: probability that is taken from the target token and given to all others alike. The entropy of
      that distribution is subtracted, so that a perfect prediction has loss 0.
  """

  z_loss: float = 0.0
  label_smoothing: float = 0.0

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require_at_least(0, 'z_loss')
    self.require_rate('label_smoothing')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Checked):
  """When checkpoints are written and which ones are kept: those that any of the three rules keeps.

  Attributes:
    period: steps between checkpoints; the last step is always saved.
    keep: how many of the newest are kept, at least 2; None keeps all.
    keep_every: steps that are multiples of it are kept for good; None is off.
    keep_best: how many of those with the best `best_metric` are kept; None is off. A checkpoint whose step was not
      evaluated does not compete.
    best_metric: a name in `eval/<task>/metrics.jsonl`.
    best_is: which values of it are best.
  """

  period: int = 1000
  keep: int | None = 3
  keep_every: int | None = None
  keep_best: int | None = None
  best_metric: str = 'cross_ent_loss_text'
  best_is: Literal['lowest', 'highest'] = 'lowest'

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require_at_least(1, 'period', 'keep_every', 'keep_best')
    self.require_at_least(2, 'keep')
    rule = f'only multiples of the period, {self.period}, are saved; use one of them.'
    self.require(self.keep_every is None or self.keep_every % self.period == 0, 'keep_every', rule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HealthConfig(Checked):
  """When a run warns about its routers, and when it stops because it makes no sense any more.

  Attributes:
    window: steps over which routers and loss are judged.
    divergence_factor: the run stops when the mean loss of a window is above this factor times the lowest one before
      and one nat; None never stops, except for a loss or gradient that is not finite.
  """

  window: int = 100
  divergence_factor: float | None = 3.0

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require_at_least(1, 'window')
    rule = 'it must be greater than 1; None never stops.'
    self.require(self.divergence_factor is None or self.divergence_factor > 1, 'divergence_factor', rule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
  """One run: everything that `python -m switch_jax.main` needs.

  Attributes:
    model: the network.
    data: the task, and how batches are made of it.
    mesh: how the devices are arranged, and what each axis splits.
    optimizer: the update and its learning rate.
    loss: what is minimised beside the losses of the routers.
    checkpoint: when the state is saved, and which steps are kept.
    health: when a run warns, and when it stops.
    model_dir: where the run lives; it belongs to one model, optimizer, task, batch size, seed and corpus.
    train_steps: this run's own steps, from step 0.
    num_microbatches: parts of the batch that are computed one after the other, for one update; only one part's
      activations are in memory. Where `sequences_per_group` is None, a group is a shard's rows of one part.
    initial_checkpoint_path: a checkpoint whose parameters step 0 begins with: a MODEL_DIR (its newest step), or
      `MODEL_DIR/checkpoints/<step>`, a T5X checkpoint or a Hugging Face folder. Read once; as soon as the run has a
      checkpoint of its own it continues that.
    upcycle: make this model's experts of the checkpoint's feed-forward networks or of its other number of experts.
    distillation: a teacher that this model learns from; None is ordinary training.
    random_seed: the seed of parameters, noise and data order.
    eval_period: steps between evaluations on the held-out split; None evaluates before and after only.
    eval_steps: batches of one evaluation.
    task_metrics: whether these also decode the held-out examples and compute the metrics of the task (greedily, nothing
      dropped): `task_accuracy` and so on, for `CheckpointConfig.best_metric` too. It takes the time of an evaluation.
    log_period: steps between lines of `train/metrics.jsonl`.
    trackers: what the metrics go to beside files: `wandb` (Weights & Biases), `mlflow`. One that does not work is said,
      and left out.
    tracker_project: the project there; MLflow calls it an experiment.
  """

  model_dir: str
  model: ModelConfig
  data: DataConfig
  train_steps: int
  random_seed: int
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  optimizer: OptimizerConfig = OptimizerConfig()
  loss: LossConfig = LossConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  health: HealthConfig = HealthConfig()
  num_microbatches: int = 1
  initial_checkpoint_path: str | None = None
  upcycle: UpcycleConfig | None = None
  distillation: DistillationConfig | None = None
  eval_period: int | None = 1000
  eval_steps: int = 20
  task_metrics: bool = False
  log_period: int = 100
  trackers: tuple[Literal['wandb', 'mlflow'], ...] = ()
  tracker_project: str = 'switch_jax'

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require(self.model_dir != '', 'model_dir', 'it must name a folder; set --gin.MODEL_DIR=/some/dir.')
    rule = 'it must name a checkpoint; None begins with new parameters.'
    self.require(self.initial_checkpoint_path != '', 'initial_checkpoint_path', rule)
    rule = 'it makes experts of a checkpoint: set INITIAL_CHECKPOINT_PATH, and a model with experts.'
    idle = self.upcycle is not None and (self.initial_checkpoint_path is None or self.model.moe is None)
    self.require(not idle, 'upcycle', rule)
    if self.distillation and self.distillation.initialize and self.initial_checkpoint_path is not None:
      raise ConfigError(
        f'RunConfig.initial_checkpoint_path is {self.initial_checkpoint_path!r} and DistillationConfig.initialize is '
        f'{self.distillation.initialize!r}: the student can begin with one of the two only. Set '
        '--gin.INITIAL_CHECKPOINT_PATH=None, or --gin.INITIALIZE="()".'
      )
    self.require(len(set(self.trackers)) == len(self.trackers), 'trackers', 'name each once.')
    self.require(self.tracker_project != '', 'tracker_project', 'it must name a project.')
    self.require_at_least(0, 'random_seed')
    self.require_at_least(1, 'num_microbatches', 'train_steps', 'eval_period', 'eval_steps', 'log_period')
    rule = f'the batch of {self.data.batch_size} rows must divide into it; use a divisor of it.'
    self.require(self.data.batch_size % self.num_microbatches == 0, 'num_microbatches', rule)
    self._check_rows()
    period = self.checkpoint.period
    if self.checkpoint.keep_best and (self.eval_period is None or self.eval_period % period):
      raise ConfigError(
        f'CheckpointConfig.keep_best is {self.checkpoint.keep_best}, but evaluations (eval_period={self.eval_period}) '
        f'come at steps that are not saved (checkpoint period {period}); make EVAL_PERIOD a multiple of '
        'CHECKPOINT_PERIOD.'
      )
    if self.data.batch_size % (rows := (self.model.moe and self.model.moe.sequences_per_group) or 1):
      raise ConfigError(
        f'MoeConfig.sequences_per_group is {rows}, which does not divide the batch of {self.data.batch_size} rows; '
        'use a divisor of it.'
      )

  def _check_rows(self) -> None:
    """Raises where the model cannot have the rows that the data gives."""
    lengths, needs = f'DataConfig.feature_lengths is {self.data.feature_lengths!r}', None
    if not self.model.is_decoder_only:
      needs = 'and the model has an encoder, which needs inputs'
      if not self.data.loss_on_targets_only:
        raise ConfigError(
          'DataConfig.loss_on_targets_only is False, and the model has an encoder, which predicts no inputs; leave it '
          'True, or set ModelConfig.num_encoder_layers=0.'
        )
    elif self.model.prefix_lm:
      needs = 'and ModelConfig.prefix_lm is True, whose prefix is the inputs'
    if needs and 'inputs' not in self.data.feature_lengths:
      raise ConfigError(
        f"{lengths}, {needs}; give both lengths, as {{'inputs': 512, 'targets': 114}}, and such a task."
      )

  @property
  def row_lengths(self) -> dict[Literal['encoder', 'decoder'], int]:
    """Returns the tokens that each stack of the model has in a row of the batch."""
    lengths = self.data.feature_lengths
    if self.model.is_decoder_only:
      return {'decoder': sum(lengths.values())}
    return {'encoder': lengths['inputs'], 'decoder': lengths['targets']}

  def identity(self) -> dict[str, Any]:
    """Returns what a MODEL_DIR belongs to, as one flat dictionary of dotted names.

    Another mesh, more steps, other periods, or logging continue a run; a difference in any of these does not.
    """
    return identity_of(self)
