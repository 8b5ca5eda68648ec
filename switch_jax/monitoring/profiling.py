"""Profiles of a few steps, where TensorBoard's profile plugin (xprof) looks for them."""

import os
from collections.abc import Sequence
from typing import Any

import jax

Window = tuple[int, int]

# Past the compilation and the first steps, and short enough to be read.
_DEFAULT_SKIP, _DEFAULT_STEPS = 5, 5


class Profiler:
  """Traces windows of steps into `DIRECTORY/plugins/profile/<time>/`.

  Args:
    windows: first and last step of each; True for five steps a little after the run begins, False for none.
    directory: `MODEL_DIR/profile`; may be remote.
    first_step: the step that the run continues from.
  """

  def __init__(self, windows: bool | Sequence[Window], directory: str | os.PathLike[str], first_step: int):
    if isinstance(windows, bool):
      begin = first_step + _DEFAULT_SKIP + 1
      windows = [(begin, begin + _DEFAULT_STEPS - 1)] if windows else []
    self._windows = [(max(first, first_step + 1), last) for first, last in windows if last > first_step]
    self._directory = os.fspath(directory)
    self._tracing = False

  def before(self, step: int) -> None:
    """Begins to trace if a window begins with the step that is about to be dispatched."""
    if any(first == step for first, _ in self._windows) and not self._tracing:
      jax.profiler.start_trace(self._directory)
      self._tracing = True

  def after(self, step: int, result: Any) -> None:
    """Ends the trace if a window ends with this step, once its result is there."""
    if self._tracing and any(last == step for _, last in self._windows):
      jax.block_until_ready(result)
      self.close()

  def close(self) -> None:
    """Ends a trace that still runs."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
