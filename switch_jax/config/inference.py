"""How a trained model is used: decoding, evaluation by metrics, and predictions for a file."""

import dataclasses
from typing import Literal

from switch_jax.config.mesh import MeshConfig
from switch_jax.config.named_objects import is_object_name
from switch_jax.config.run import DataConfig
from switch_jax.config.validation import Checked


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingConfig(Checked):
  """How targets are made from inputs.

  Attributes:
    method: `greedy` takes the likeliest token, `sample` draws one, `beam` keeps the best hypotheses.
    num_beams: hypotheses of an example kept by `beam`.
    length_penalty: the alpha of `beam`: hypotheses compete by log probability / ((5 + length) / 6) ** alpha.
    temperature: of `sample`: logits are divided by it.
    top_k: `sample` draws from the k likeliest tokens only; None from all.
    top_p: `sample` draws from the likeliest tokens that together have this probability (nucleus); None from all.
    seed: of `sample`.
  """

  method: Literal['greedy', 'sample', 'beam'] = 'greedy'
  num_beams: int = 4
  length_penalty: float = 0.6
  temperature: float = 1.0
  top_k: int | None = None
  top_p: float | None = None
  seed: int = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require_at_least(1, 'num_beams', 'top_k')
    self.require_at_least(0, 'length_penalty', 'seed')
    self.require_positive('temperature')
    self.require(self.top_p is None or 0 < self.top_p <= 1, 'top_p', 'it must be greater than 0 and at most 1.')
    if self.method != 'sample':
      rule = f"it is for method 'sample', and the method is {self.method!r}; leave it out or set the method."
      self.require(self.top_k is None, 'top_k', rule)
      self.require(self.top_p is None, 'top_p', rule)
      self.require(self.temperature == 1.0, 'temperature', rule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Checked):
  """Metrics of a SeqIO task, or of every task of a mixture, over checkpoints of a run.

  The model is what the checkpoint's `config.json` says.

  Attributes:
    model_dir: of the run that is evaluated.
    data: the task or mixture, its `eval_split`, and the examples decoded at once (`batch_size`). Examples longer than
      `feature_lengths` are cut, and targets are decoded up to theirs.
    checkpoints: `latest` is one checkpoint, the newest or `step`; `all` are those that are there; `new` goes on with
      those that come until that of the run's last step. `all` and `new` leave out what has been evaluated before.
    step: which checkpoint `latest` means; None is the newest.
    capacity_factors: each is one evaluation: None without dropping tokens, a number with that capacity factor where
      many tokens are routed at once (in the encoder, and in both stacks where targets are scored).
    num_examples: the first so many of each task; None is all.
    metrics: your own, beside those of each task, as `module:function`: a function of `targets` and `predictions`, or of
      `targets` and `scores`, that returns numbers by name, as SeqIO's metric functions do.
    poll_seconds: how often `new` looks for a checkpoint.
    mesh: how the devices are arranged; it need not be the mesh of the run.
    decoding: how predictions are made.
  """

  model_dir: str
  data: DataConfig
  checkpoints: Literal['latest', 'all', 'new'] = 'latest'
  step: int | None = None
  capacity_factors: tuple[float | None, ...] = (None,)
  num_examples: int | None = None
  metrics: tuple[str, ...] = ()
  poll_seconds: float = 10.0
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  decoding: DecodingConfig = DecodingConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require(self.model_dir != '', 'model_dir', 'it must name a folder; set --gin.MODEL_DIR=/some/dir.')
    self.require_at_least(1, 'num_examples')
    self.require_at_least(0, 'step')
    self.require_positive('poll_seconds')
    rule = "it must name functions of your own, each once, as ('my_metrics:f1',)."
    self.require(all(map(is_object_name, self.metrics)), 'metrics', rule)
    self.require(len(set(self.metrics)) == len(self.metrics), 'metrics', rule)
    factors = self.capacity_factors
    self.require(len(factors) > 0, 'capacity_factors', 'give at least one: (None,) drops no token.')
    self.require(len(set(factors)) == len(factors), 'capacity_factors', 'name each factor once.')
    self.require(all(f is None or f > 0 for f in factors), 'capacity_factors', 'a factor must be greater than 0.')
    rule = f"it goes with checkpoints='latest', and that is {self.checkpoints!r}; leave one of them out."
    self.require(self.step is None or self.checkpoints == 'latest', 'step', rule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionConfig(Checked):
  """Predictions for the lines of a file, by one checkpoint of a run.

  Attributes:
    model_dir: of the run.
    input_file: JSON lines, or a table (.csv, .tsv, .parquet). A model of `switch_jax.tasks.table_files` reads the
      columns that it was trained on; other inputs stand in `inputs_key`, as the model's task would give them.
    output_file: the same objects in the same order with `prediction` and `score`, and `was_cut` where a text was.
    step: which checkpoint; None is the newest.
    inputs_key: where the text stands in an object or row; None is what the checkpoint's template asks for, or 'inputs'.
    template: text with `{column}` in it that makes the inputs, in place of both.
    undecodable: whether bytes that are no UTF-8 are refused (a line of JSON lines, or a table), or replaced by U+FFFD.
    prediction_field, score_field: what the two are called. A line that has a field of such a name is refused.
    batch_size: examples decoded at once.
    inputs_length: tokens; longer texts are cut. None is what the run was trained with.
    targets_length: tokens that are decoded at most; None is what the run was trained with.
    vocabulary: 'bytes', 'byt5', 'byt5_huggingface' or the path of a SentencePiece model; None is what the checkpoint
      records.
    add_eos: whether EOS is appended to a text; None is what the task of the checkpoint did.
    mesh: how the devices are arranged; it need not be the mesh of the run.
    decoding: how predictions are made.
  """

  model_dir: str
  input_file: str
  output_file: str
  batch_size: int
  step: int | None = None
  inputs_key: str | None = None
  template: str | None = None
  undecodable: Literal['refuse', 'replace'] = 'refuse'
  prediction_field: str = 'prediction'
  score_field: str = 'score'
  inputs_length: int | None = None
  targets_length: int | None = None
  vocabulary: str | None = None
  add_eos: bool | None = None
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  decoding: DecodingConfig = DecodingConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    fields = ('inputs_key', 'prediction_field', 'score_field')
    for name in ('model_dir', 'input_file', 'output_file', 'vocabulary', 'template', *fields):
      self.require(getattr(self, name) != '', name, 'it must not be empty.')
    rule = f'template is {self.template!r}, which names the columns itself; leave one of them out.'
    self.require(self.template is None or self.inputs_key is None, 'inputs_key', rule)
    taken = ['was_cut']  # what a line may have beside these
    for name in fields:
      self.require(getattr(self, name) not in taken, name, f'{", ".join(taken)} are taken; choose another name.')
      taken.append(getattr(self, name) or 'inputs')
    self.require_at_least(1, 'batch_size', 'inputs_length', 'targets_length')
    self.require_at_least(0, 'step')
    rule = 'the input file has the same name; write to another file.'
    self.require(self.input_file != self.output_file, 'output_file', rule)
