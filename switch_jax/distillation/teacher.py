"""A frozen teacher: which model it is, its parameters on the student's mesh, and its logits."""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp

from switch_jax.config import ConfigError, DistillationConfig, ModelConfig, RunConfig
from switch_jax.inference import with_capacity
from switch_jax.interop import CheckpointFacts, describe_checkpoint, initial_parameters
from switch_jax.interop.inheritance import kind_of
from switch_jax.model import Transformer, abstract_parameters, parameter_count
from switch_jax.parallel import Layout

SETTING = 'DistillationConfig.teacher_path'


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A teacher before any of its arrays is read.

  Attributes:
    facts: what its checkpoint says of itself.
    model: what is computed: as it was trained, without noise or dropped tokens, in the teacher's dtype.
  """

  facts: CheckpointFacts
  model: ModelConfig

  @classmethod
  def open(cls, config: DistillationConfig) -> 'Teacher':
    """Finds the teacher's checkpoint.

    Raises:
      ConfigError: there is none that can be read.
      CheckpointError: it is damaged.
    """
    facts = describe_checkpoint(config.teacher_path, SETTING)
    model = facts.model
    if model.moe and model.moe.router != 'expert_choice':  # experts that choose tokens need their capacity
      model = with_capacity(model, None)
    return cls(facts, dataclasses.replace(model, activation_dtype=config.teacher_dtype, remat_policy='none'))

  def check_rows(self, run: RunConfig) -> None:
    """Raises a `ConfigError` unless the teacher can compute the rows of the student's batches."""
    kind = lambda model: 'no encoder' if model.is_decoder_only else 'an encoder'  # noqa: E731
    if kind(self.model) != kind(run.model):
      raise ConfigError(
        f'{SETTING}: {self.facts.path} has {kind(self.model)} and the student has {kind(run.model)}; their rows '
        'differ. Use a teacher of the same kind, or set ModelConfig.num_encoder_layers accordingly.'
      )
    if self.model.prefix_lm and 'inputs' not in run.data.feature_lengths:
      raise ConfigError(
        f'{SETTING}: {self.facts.path} is a prefix LM, and the rows of the student have no inputs (DataConfig.'
        f'feature_lengths is {run.data.feature_lengths!r}); use a task with inputs, or another teacher.'
      )

  def check_vocabulary(self, rows: int, vocabulary: dict[str, Any]) -> None:
    """Raises a `ConfigError` unless the ids of student and teacher mean the same.

    Args:
      rows: of the student's embedding.
      vocabulary: of the task, as a checkpoint records it.
    """
    path, recorded = self.facts.path, self.facts.vocabulary or {}
    if recorded.get('digest', vocabulary['digest']) != vocabulary['digest']:
      raise ConfigError(
        f'{SETTING}: {path} was trained with the vocabulary {recorded.get("name")} of {recorded["size"]} ids, and the '
        f"student's task has {vocabulary['name']} of {vocabulary['size']}; their distributions are over other pieces. "
        'Use a teacher of the same vocabulary, or set --gin.VOCABULARY to that of the teacher.'
      )
    if self.model.vocab_size != rows:
      raise ConfigError(
        f'{SETTING}: {path} has {self.model.vocab_size} rows in its vocabulary, and ModelConfig.vocab_size of the '
        f'student is {rows}; they must be equal, since distributions are compared id by id. Set '
        f'--gin.config.ModelConfig.vocab_size={self.model.vocab_size}.'
      )

  def abstract_params(self, layout: Layout) -> Any:
    """Returns the tree of `jax.ShapeDtypeStruct` with shardings that the teacher is held as."""
    dtype = jnp.dtype(self.model.activation_dtype)

    def one(path, leaf):
      names = [key.key for key in path]
      # Routers decide in float32 (section 2.4), and vectors are small.
      keep = 'router' in names or kind_of('/'.join(names)) == 'layer_norm' or names[-1] == 'rel_embedding'
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if keep else dtype, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(one, abstract_parameters(self.model, layout))

  def load(self, layout: Layout) -> Any:
    """Reads the teacher's parameters onto the mesh.

    Raises:
      ConfigError, CheckpointError: they cannot be read.
    """
    return initial_parameters(self.facts.path, self.model, self.abstract_params(layout), setting=SETTING)

  def logits(self, params: Any, batch: dict[str, jax.Array], layout: Layout) -> jax.Array:
    """Returns float32 logits `[batch, targets length, vocab]`; traced inside a step."""
    return Transformer(self.model, layout).apply({'params': params}, batch)[0]

  def record(self) -> dict[str, Any]:
    """Returns what a student's checkpoint records of its teacher, plain values."""
    facts = self.facts
    count = parameter_count(abstract_parameters(self.model, Layout.single_device()))
    return {'path': facts.path, 'step': facts.step, 'parameters': count, 'digest': self.digest()}

  def digest(self) -> str:
    """Returns what tells one teacher from another wherever it lies: its model, its step and what it was trained on."""
    facts = self.facts
    known = [facts.model.to_json(), facts.step, facts.record.get('identity'), facts.record.get('target_tokens')]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
