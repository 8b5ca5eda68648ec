"""Distillation (paper section 4.2): a student that learns from a frozen teacher beside the labels.

In every step the teacher computes its distributions on the same mesh, inside the same program; or they are read from
files that `--run_mode=teacher` has written (`teacher_logits`). The student begins with the teacher's weights outside
experts and routers, where names and shapes agree.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from switch_jax.config import ConfigError, ModelConfig, RunConfig
from switch_jax.distillation.soft_targets import SoftTargets, soft_targets
from switch_jax.distillation.teacher import Teacher
from switch_jax.distillation.teacher_logits import IDS, LOG_PROBABILITIES, TeacherLogitsReader
from switch_jax.interop import Inheritance, find_inheritance, inherit
from switch_jax.model import init_parameters
from switch_jax.parallel import Layout

Batch = dict[str, jax.Array]


@dataclasses.dataclass
class Distillation:
  """One run's share of its teacher.

  Attributes:
    run: the student's run.
    teacher: None where neither its weights nor its distributions are needed any more.
    inheritance: what the student begins with; None once it has begun.
    recorded: what an earlier checkpoint of the student says of its teacher.
    params: the teacher's parameters, once `load` has read them.
    reader: of the teacher's files, once `load` has opened them.
  """

  run: RunConfig
  teacher: Teacher | None
  inheritance: Inheritance | None
  recorded: dict[str, Any] | None = None
  params: Any = None
  reader: TeacherLogitsReader | None = None

  @classmethod
  def open(cls, run: RunConfig, recorded: dict[str, Any] | None = None, begins: bool = True) -> 'Distillation | None':
    """Finds what a run needs of its teacher; reads no array. None for a run without a teacher.

    Args:
      run: the student's run.
      recorded: what the newest checkpoint of the student records of its teacher, if there is one.
      begins: whether the student is at its first step.

    Raises:
      ConfigError: the teacher cannot be read, has nothing to give, or is not the one that the run began with.
    """
    config = run.distillation
    if config is None:
      return None
    needs_logits = config.soft_weight > 0 and config.teacher_logits is None
    if not (needs_logits or (config.initialize and begins)):
      return cls(run, None, None, recorded)
    teacher = Teacher.open(config)
    if recorded and recorded['digest'] != (digest := teacher.digest()):
      raise ConfigError(
        f'DistillationConfig.teacher_path is {config.teacher_path!r}, which is step {teacher.facts.step} of a teacher '
        f'({digest[:16]}), and this run began with step {recorded["step"]} of {recorded["path"]} '
        f'({recorded["digest"][:16]}). Name that one, --gin.TEACHER_PATH={recorded["path"]}, or another '
        '--gin.MODEL_DIR.'
      )
    inheritance = None
    if begins and config.initialize:
      inheritance = find_inheritance(teacher.facts.path, config.initialize, run.model)
    return cls(run, teacher, inheritance, recorded)

  @property
  def computes_teacher(self) -> bool:
    """Whether the teacher runs in every step."""
    return self.run.distillation.soft_weight > 0 and self.run.distillation.teacher_logits is None

  @property
  def models(self) -> list[ModelConfig]:
    """The models that must divide over the mesh beside the student."""
    return [self.teacher.model] if self.computes_teacher else []

  def describe(self) -> list[str]:
    """Returns what the student takes from its teacher, in lines."""
    config = self.run.distillation
    how = 'in every step' if self.computes_teacher else f'read from {config.teacher_logits}'
    soft = f', {how}, at temperature {config.temperature:g}' if config.soft_weight else ''
    lines = ['distillation', f'  loss: {1 - config.soft_weight:g} hard + {config.soft_weight:g} soft{soft}']
    if self.teacher:
      facts, record = self.teacher.facts, self.teacher.record()
      experts = f', {facts.model.moe.num_experts} experts a layer' if facts.model.moe else ''
      lines.append(f'  teacher: {facts.path}, {record["parameters"]:,} parameters{experts}, {config.teacher_dtype}')
    return lines + [f'  {line}' for line in (self.inheritance.describe() if self.inheritance else ())]

  def check_vocabulary(self, vocabulary: dict[str, Any]) -> None:
    """Raises a `ConfigError` unless the task's vocabulary is the teacher's."""
    if self.teacher:
      self.teacher.check_vocabulary(self.run.model.vocab_size, vocabulary)

  def initial_parameters(self, layout: Layout) -> Any:
    """Returns what the student begins with, or None if the teacher gives nothing."""
    if self.inheritance is None:
      return None
    params = init_parameters(self.run.model, layout, jax.random.key(self.run.random_seed))
    return inherit(self.teacher.facts.path, self.inheritance, self.run.model, params)

  def load(self, layout: Layout, fingerprint: dict[str, Any], first_step: int) -> None:
    """Reads the teacher's parameters, or opens its files at a step.

    Args:
      layout: the student's.
      fingerprint: of the data that the student sees.
      first_step: batches that the student has seen.

    Raises:
      ConfigError: they are not there, are damaged, or belong to other data.
    """
    config = self.run.distillation
    if self.computes_teacher:
      self.params = self.teacher.load(layout)
    elif config.soft_weight > 0:
      self.reader = TeacherLogitsReader(self.run, fingerprint, layout, first_step)

  def be_abstract(self, layout: Layout) -> None:
    """Takes shapes for the teacher's parameters, for a step that is compiled and not run."""
    if self.computes_teacher:
      self.params = self.teacher.abstract_params(layout)

  def abstract_targets(self, layout: Layout) -> Batch:
    """Returns what `with_targets` adds to a batch, as shapes."""
    config, data, vocab_size = self.run.distillation, self.run.data, self.run.model.vocab_size
    if config.soft_weight == 0 or self.computes_teacher:
      return {}
    top_k = min(config.top_k or vocab_size, vocab_size)
    shape, sharding = (data.batch_size, data.feature_lengths['targets'], top_k), layout.batch_sharding()
    dtypes = {LOG_PROBABILITIES: jnp.float32} | ({IDS: jnp.int32} if top_k < vocab_size else {})
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in dtypes.items()}

  @property
  def step_arguments(self) -> tuple[Any, ...]:
    """What the training step takes after state and batch."""
    return (self.params,) if self.computes_teacher else ()

  def with_targets(self, batch: Batch) -> Batch:
    """Returns a batch with what the teacher's files say of it, where they are used."""
    return batch | next(self.reader) if self.reader else batch

  def record(self) -> dict[str, Any] | None:
    """Returns what a checkpoint of the student records of its teacher, plain values."""
    if self.recorded is None and self.teacher is not None:
      taken = list(self.inheritance.taken) if self.inheritance else []
      self.recorded = self.teacher.record() | {'initialized': taken}
    return self.recorded or (self.reader and self.reader.record['teacher'])

  def close(self) -> None:
    """Stops reading."""
    if self.reader:
      self.reader.close()


def make_targets(
  distillation: Distillation | None, layout: Layout
) -> Callable[[Batch, tuple[Any, ...]], SoftTargets] | None:
  """Returns the function by which a step finds the teacher's distributions; None for ordinary training.

  It is given the batch and what the step was given of the teacher, and is traced inside the step.
  """
  if distillation is None or distillation.run.distillation.soft_weight == 0:
    return None
  config, teacher = distillation.run.distillation, distillation.teacher
  if distillation.computes_teacher:
    return lambda batch, params: soft_targets(teacher.logits(*params, batch, layout), config.temperature)
  return lambda batch, params: SoftTargets(batch[LOG_PROBABILITIES], batch.get(IDS))
