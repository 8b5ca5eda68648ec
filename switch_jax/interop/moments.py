"""Adafactor's second moments here and in T5X: which of `v_row` and `v_col` belongs to which axis.

For a matrix on its own both average the longer axis away in `v_row`, the last one if they are equally long. For experts
T5X goes by the axes' names: `v_row` belongs to the embedding, `v_col` to the hidden width, whichever is longer. Here
the longer one counts there too, so the two change places wherever an expert's embedding is the longer side, and for
square ones in `wo`. Sizes do not show that, values do.
"""

from collections.abc import Mapping

from switch_jax.interop.stored import StoredArray

Moments = Mapping[str, Mapping[str, StoredArray]]

_OTHER = {'v_row': 'v_col', 'v_col': 'v_row', 'v': 'v'}


def change_places(name: str, shape: tuple[int, ...]) -> bool:
  """Whether T5X's `v_row` is our `v_col` for a parameter with this name and (unscanned) shape."""
  if '/mlp/expert/' not in name:
    return False
  averaged = -2 if shape[-2] > shape[-1] else -1
  hidden = -2 if name.endswith('/wo/kernel') else -1
  return averaged != hidden


def exchange(moments: Moments, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, StoredArray]]:
  """Returns moments in our convention as T5X's, or T5X's as ours: the same exchange in both directions.

  Args:
    moments: slots by parameter, separate layers.
    shapes: of the parameters.
  """
  return {
    name: {(_OTHER[slot] if change_places(name, shapes[name]) else slot): array for slot, array in slots.items()}
    for name, slots in moments.items()
  }


def expected_shapes(name: str, shape: tuple[int, ...], slots: Mapping[str, StoredArray]) -> dict[str, tuple[int, ...]]:
  """Returns the shapes that a parameter's slots must have, in T5X's convention."""
  if set(slots) == {'v'}:
    return {'v': shape}
  if '/mlp/expert/' in name:
    row_axis = -1 if name.endswith('/wo/kernel') else -2
  else:
    row_axis = -1 if shape[-2] > shape[-1] else -2
  stack = shape[:-2]
  return {'v_row': (*stack, shape[row_axis]), 'v_col': (*stack, shape[-3 - row_axis])}
