"""What a student takes from a frozen teacher."""

import dataclasses
from typing import Literal, get_args

from switch_jax.config.validation import Checked

# Kinds of parameters that a student can begin with; experts and routers are none of them.
InheritedKind = Literal['embedding', 'attention', 'layer_norm', 'mlp']
INHERITED_KINDS: tuple[InheritedKind, ...] = get_args(InheritedKind)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig(Checked):
  """A frozen teacher, usually with experts, and what a smaller student takes from it (paper section 4.2).

  The loss of a target token is (1 - soft_weight) * hard + soft_weight * temperature ** 2 * soft: the cross-entropy with
  the label, and that of the student's distribution with the teacher's, both at the temperature. Every row of the
  paper's Table 6 is a setting of `initialize` and `soft_weight`.

  Attributes:
    teacher_path: its checkpoint, in any format that INITIAL_CHECKPOINT_PATH takes: a MODEL_DIR (its newest step),
      `MODEL_DIR/checkpoints/<step>`, a T5X or a Hugging Face checkpoint.
    soft_weight: share of the teacher in the loss, from 0 (ordinary training) to 1; the paper mixes 0.25.
    temperature: both distributions of the soft part are those of the logits divided by it. The paper names none.
    initialize: which of its weights the student begins with, where names and shapes agree: `embedding` (and the
      output projection), `attention` (and its relative positions), `layer_norm`, `mlp` (the feed-forward networks
      without experts). `()` is none. What has experts in the teacher begins anew in the student.
    teacher_dtype: dtype of the teacher's matrices and activations; its routers stay float32.
    teacher_logits: a folder that `--run_mode=teacher` writes: then the teacher's distributions are read from there and
      it takes no memory beside the student. None runs the teacher in every step.
    top_k: of how many of its likeliest tokens `--run_mode=teacher` keeps the probability; the others are one class with
      what is left. None keeps all.
  """

  teacher_path: str
  soft_weight: float = 0.25
  temperature: float = 1.0
  initialize: tuple[InheritedKind, ...] = INHERITED_KINDS
  teacher_dtype: Literal['float32', 'bfloat16'] = 'bfloat16'
  teacher_logits: str | None = None
  top_k: int | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require(self.teacher_path != '', 'teacher_path', 'it must name a checkpoint.')
    rule = 'it is a share of the loss, from 0 to 1; the paper mixes 0.25.'
    self.require(0 <= self.soft_weight <= 1, 'soft_weight', rule)
    self.require_positive('temperature')
    self.require(len(set(self.initialize)) == len(self.initialize), 'initialize', 'name each kind once.')
    self.require(self.teacher_logits != '', 'teacher_logits', 'it must name a folder; None runs the teacher.')
    self.require_at_least(1, 'top_k')
    rule = 'it is for teacher_logits, which is None; set --gin.TEACHER_LOGITS=/some/dir, or leave it None.'
    self.require(self.top_k is None or self.teacher_logits is not None, 'top_k', rule)
