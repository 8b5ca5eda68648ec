"""How it is computed on a machine: operations that have more than one form, and the table that chooses.

Each operation has a plain reference and, where a machine wants another, a form of its own that a test compares with it.
What an operation needs of the machine ends here: the model asks for the operation, `table.forms` says which form the
devices of a layout get. A form changes no number beyond rounding and is no part of a run's identity.
"""

from switch_jax.kernels.attention import MASKED, attention
from switch_jax.kernels.decisions import SORTED, Decisions, decisions
from switch_jax.kernels.drop_free import apply_to_all
from switch_jax.kernels.products import dense_kernel_gradient, expert_product
from switch_jax.kernels.slots import SlotIndex, from_slots, to_slots
from switch_jax.kernels.table import describe, forms

__all__ = [
  'MASKED',
  'SORTED',
  'Decisions',
  'SlotIndex',
  'apply_to_all',
  'attention',
  'decisions',
  'dense_kernel_gradient',
  'describe',
  'expert_product',
  'forms',
  'from_slots',
  'to_slots',
]
