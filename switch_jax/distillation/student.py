"""Distillation (paper section 4.2): a student that learns from a frozen teacher beside the labels.

In every step the teacher computes its distributions on the same mesh, inside the same program; or they are read from
files that `--run_mode=teacher` has written (`teacher_logits`). The student begins with the teacher's weights outside
experts and routers, where names and shapes agree.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from switch_jax.config import ConfigError, DistillationConfig, ModelConfig, RunConfig
from switch_jax.data import Batch
from switch_jax.distillation.soft_targets import SoftTargets, soft_targets
from switch_jax.distillation.teacher import Teacher
from switch_jax.distillation.teacher_logits import IDS, LOG_PROBABILITIES, TeacherLogitsReader
from switch_jax.interop import Inheritance, find_inheritance, inherit
from switch_jax.model import init_parameters
from switch_jax.parallel import Layout


@dataclasses.dataclass(frozen=True)
class Lessons:
  """What a teacher has to say of each batch; without a teacher, nothing.

  Attributes:
    arguments: what the training step takes after state and batch: the teacher's parameters, where it computes.
    soft_targets: maps a batch, and these arguments, to the teacher's distributions (None without a soft loss); traced
      inside the step.
    reader: gives what the teacher's files say of the next batch; None where there are none.
    abstract_entries: what the files add to a batch, as shapes.
  """

  arguments: tuple[Any, ...] = ()
  soft_targets: Callable[..., SoftTargets | None] = lambda batch, *arguments: None
  reader: TeacherLogitsReader | None = None
  abstract_entries: Batch = dataclasses.field(default_factory=dict)

  def beside(self, source: Iterator[Batch]) -> Iterator[Batch]:
    """Returns the batches of a source with what the teacher's files say of them."""
    return source if self.reader is None else (batch | next(self.reader) for batch in source)

  def close(self) -> None:
    """Stops reading."""
    if self.reader:
      self.reader.close()


NO_LESSONS = Lessons()


@dataclasses.dataclass(frozen=True)
class Distillation:
  """A run's share of its teacher, before any array is read; without a teacher everything here is empty.

  Attributes:
    run: the student's run.
    teacher: None where neither its weights nor its distributions are needed (any more).
    inheritance: what the student begins with; None once it has begun.
    recorded: what an earlier checkpoint of the student says of its teacher.
  """

  run: RunConfig
  teacher: Teacher | None = None
  inheritance: Inheritance | None = None
  recorded: dict[str, Any] | None = None

  @classmethod
  def open(cls, run: RunConfig, recorded: dict[str, Any] | None = None, begins: bool = True) -> 'Distillation':
    """Finds what a run needs of its teacher; reads no array.

    Args:
      run: the student's run.
      recorded: what the newest checkpoint of the student records of its teacher, if there is one.
      begins: whether the student is at its first step.

    Raises:
      ConfigError: the teacher cannot be read, has nothing to give, or is not the one that the run began with.
    """
    config = run.distillation
    if config is None:
      return cls(run)
    if not (_computes_teacher(config) or (config.initialize and begins)):
      return cls(run, recorded=recorded)
    teacher = Teacher.open(config)
    if _computes_teacher(config):
      teacher.check_rows(run)
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
  def models(self) -> list[ModelConfig]:
    """The models that must divide over the mesh beside the student."""
    return [self.teacher.model] if self.teacher and _computes_teacher(self.run.distillation) else []

  def describe(self) -> list[str]:
    """Returns what the student takes from its teacher, in lines."""
    config = self.run.distillation
    if config is None:
      return []
    how = 'in every step' if _computes_teacher(config) else f'read from {config.teacher_logits}'
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
    if self.teacher is None or self.inheritance is None:
      return None
    params = init_parameters(self.run.model, layout, jax.random.key(self.run.random_seed))
    return inherit(self.teacher.facts.path, self.inheritance, self.run.model, params)

  def lessons(self, layout: Layout, fingerprint: dict[str, Any], first_step: int) -> Lessons:
    """Reads the teacher's parameters, or opens its files at a step.

    Args:
      layout: the student's.
      fingerprint: of the data that the student sees.
      first_step: batches that the student has seen.

    Raises:
      ConfigError: they are not there, are damaged, or belong to other data.
    """
    if self.models:
      return self._computed(layout, self.teacher.load(layout))
    if self._is_soft:
      return dataclasses.replace(_FROM_FILES, reader=TeacherLogitsReader(self.run, fingerprint, layout, first_step))
    return NO_LESSONS

  def abstract_lessons(self, layout: Layout) -> Lessons:
    """Returns the lessons as shapes, for a step that is compiled and not run."""
    if self.models:
      return self._computed(layout, self.teacher.abstract_params(layout))
    if not self._is_soft:
      return NO_LESSONS
    data, vocab_size = self.run.data, self.run.model.vocab_size
    top_k = min(self.run.distillation.top_k or vocab_size, vocab_size)
    shape, sharding = (data.batch_size, self.run.row_lengths['decoder'], top_k), layout.batch_sharding()
    dtypes = {LOG_PROBABILITIES: jnp.float32} | ({IDS: jnp.int32} if top_k < vocab_size else {})
    entries = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in dtypes.items()}
    return dataclasses.replace(_FROM_FILES, abstract_entries=entries)

  @property
  def _is_soft(self) -> bool:
    return self.run.distillation is not None and self.run.distillation.soft_weight > 0

  def _computed(self, layout: Layout, params: Any) -> Lessons:
    teacher, temperature = self.teacher, self.run.distillation.temperature
    return Lessons((params,), lambda batch, params: soft_targets(teacher.logits(params, batch, layout), temperature))

  def record(self, lessons: Lessons) -> dict[str, Any]:
    """Returns what a checkpoint of the student records: its `teacher`, plain values; nothing without one."""
    if self.run.distillation is None:
      return {}
    if self.recorded is not None:
      return {'teacher': self.recorded}
    if self.teacher is None:
      return {'teacher': lessons.reader.record['teacher'] if lessons.reader else None}
    taken = list(self.inheritance.taken) if self.inheritance else []
    return {'teacher': self.teacher.record() | {'initialized': taken}}


def _computes_teacher(config: DistillationConfig | None) -> bool:
  """Whether the teacher runs in every step."""
  return config is not None and config.soft_weight > 0 and config.teacher_logits is None


_FROM_FILES = Lessons(soft_targets=lambda batch, *arguments: SoftTargets(batch[LOG_PROBABILITIES], batch.get(IDS)))
