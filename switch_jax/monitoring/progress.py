"""How a run shows where it is: a bar on a terminal, plain lines in a log file."""

import itertools
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

# A log file gets at most one line in this many seconds.
_SECONDS_BETWEEN_LINES = 2.0


class Progress:
  """Shows the step, the loss, the speed and the time left.

  Args:
    stream: where to; standard error by default. A bar is drawn if it is a terminal.
    active: False shows nothing, for hosts that leave it to the first one.
    clock: seconds that never go back; another one is for tests.
  """

  def __init__(self, stream: TextIO | None = None, *, active: bool = True, clock: Callable[[], float] = time.monotonic):
    self._stream = sys.stderr if stream is None else stream
    self._active = active
    self._clock = clock
    self._bar: Any = None
    self._total = 0
    self._first: tuple[int, float] | None = None
    self._last_line = -_SECONDS_BETWEEN_LINES

  def start(self, initial_step: int, total: int) -> None:
    """Begins to show a run that has `initial_step` of its `total` steps behind it."""
    self._total = total
    self._first = None
    if self._active and self._stream.isatty():
      from tqdm import tqdm

      self._bar = tqdm(
        initial=initial_step,
        total=total,
        file=self._stream,
        unit='step',
        dynamic_ncols=True,
        # The first step holds the compilation; older speeds should fade soon.
        smoothing=0.1,
        bar_format='{n_fmt}/{total_fmt} steps |{bar}| {postfix}{elapsed} so far, {remaining} left',
      )

  def update(self, step: int, loss: float | None = None, tokens_per_second: float | None = None) -> None:
    """Shows a step that is done.

    Args:
      step: how many steps are behind.
      loss: cross-entropy of that step in nats per target token; None leaves it out.
      tokens_per_second: target tokens per second; None leaves it out.
    """
    if not self._active:
      return
    now = self._clock()
    if self._first is None:
      self._first = (step, now)
    shown = [] if loss is None else [f'loss {loss:.3f}']
    if tokens_per_second is not None:
      shown.append(f'{tokens_per_second:,.0f} tokens/s')
    if self._bar is not None:
      if shown:
        # tqdm's own {postfix} begins with a comma.
        self._bar.postfix = ''.join(f'{part} | ' for part in shown)
      self._bar.update(step - self._bar.n)
    elif shown and (step >= self._total or now - self._last_line >= _SECONDS_BETWEEN_LINES):
      self._last_line = now
      self._print(' | '.join([f'step {step:,} of {self._total:,}', *shown, *self._time_left(step, now)]))

  def note(self, text: str) -> None:
    """Shows a line of its own, above the bar if there is one."""
    if not self._active:
      return
    if self._bar is not None:
      self._bar.write(text, file=self._stream)
    else:
      self._print(text)

  def close(self) -> None:
    """Ends the bar and leaves it standing."""
    if self._bar is not None:
      self._bar.refresh()
      self._bar.close()
      self._bar = None

  def _time_left(self, step: int, now: float) -> list[str]:
    if self._first is None:
      return []
    # Counted from the first update, so that the compilation is left out.
    first_step, first_time = self._first
    if step >= self._total or step <= first_step:
      return []
    return [f'{duration((self._total - step) * (now - first_time) / (step - first_step))} left']

  def _print(self, text: str) -> None:
    print(text, file=self._stream, flush=True)


def duration(seconds: float) -> str:
  """Returns seconds in words: `45 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
  seconds = round(seconds)
  units = ((86400, 'd'), (3600, 'h'), (60, 'min'), (1, 's'))
  for (size, unit), (smaller_size, smaller) in itertools.pairwise(units):
    if seconds >= size:
      return f'{seconds // size} {unit} {seconds % size // smaller_size} {smaller}'
  return f'{seconds} s'
