"""What a run measures, on disk: TensorBoard events and `metrics.jsonl` side by side in one folder.

Each step stands once in a file, also after a resume: the lines of steps that will be run again are cut, and TensorBoard
is told to forget them by a restart record. `expert_tokens.jsonl` is kept in the same way; it has the load of every
expert at the steps at which pictures are drawn.

On a disk a line is there once it has been written. On an object store lines and events are gathered, and a thread sends
what is new at intervals; `flush` and `close` wait for it. Events are written to a local file first.
"""

import contextlib
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsFloat

import numpy as np
from etils import epath

from switch_jax.config import first_line
from switch_jax.folders.metric_lines import LineWriter
from switch_jax.folders.model_dir import EXPERT_TOKENS_FILE, METRICS_FILE
from switch_jax.folders.remote import Appender, is_remote, remove_unfinished


class MetricFiles:
  """Writes the metrics of one folder: `train`, or one of those below `eval` (`ModelDir`).

  The folder is made, and TensorFlow imported, by the first write.

  Args:
    directory: where the files lie; may be remote (`gs://...`).
    active: False makes every method do nothing, for hosts that leave the writing to the first one.
    tensorboard: write TensorBoard events too.
    beside: is given the step and the numbers of every line too.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    active: bool = True,
    tensorboard: bool = True,
    beside: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
  ):
    self._directory = epath.Path(directory)
    self._appender = Appender() if is_remote(self._directory) else None
    self._lines = LineWriter(self._directory / METRICS_FILE, self._appender)
    self._expert_lines = LineWriter(self._directory / EXPERT_TOKENS_FILE, self._appender)
    self._active = active
    self._tensorboard = tensorboard
    self._beside = beside
    self._events: Any = None
    self._opened = False
    self._local: Any = None  # the folder of the events that are to be sent
    self._sent: dict[str, int] = {}  # bytes of its files

  def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
    """Writes one line, and the same numbers as TensorBoard scalars.

    The step of the last line may be written again and then replaces it.

    Args:
      step: the training step that was just done; at least the last one written.
      metrics: plain, numpy or JAX scalars by name.

    Raises:
      ValueError: the step is smaller than the last one (call `truncate_after` when a run resumes), or no number.
    """
    if not self._active:
      return
    plain = self._open(metrics)
    if step == self._lines.last_step:
      self.truncate_after(step - 1)
    self._lines.append(step, plain)
    self._write_scalars(step, plain)
    self._beside(step, plain)

  def merge(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
    """Writes numbers beside those that the line of a step has, in whatever order steps come, and to TensorBoard."""
    if self._active:
      plain = self._open(metrics)
      self._lines.merge(step, plain)
      self._write_scalars(step, plain)

  def write_expert_tokens(self, step: int, expert_tokens: Mapping[str, np.ndarray]) -> None:
    """Writes one line of `expert_tokens.jsonl`: `{"step": 100, "encoder_1": [12, 0, ...], ...}`.

    Args:
      step: the step whose line of metrics was just written.
      expert_tokens: by layer, the tokens that wanted each expert, `[experts]`.
    """
    if not self._active:
      return
    self._open({})
    counts = {layer: np.asarray(tokens).astype(int).tolist() for layer, tokens in expert_tokens.items()}
    self._expert_lines.append(step, counts)

  def last_expert_step(self) -> int | None:
    """Returns the step of the last line of `expert_tokens.jsonl`, or None."""
    return self._expert_lines.last_step

  def write_pictures(self, step: int, histograms: Mapping[str, np.ndarray], images: Mapping[str, np.ndarray]) -> None:
    """Writes distributions of arrays, and pictures, to TensorBoard.

    Args:
      step: the training step.
      histograms: arrays of any shape by name.
      images: `[height, width, channels]` (uint8, or float in [0, 1]) by name.
    """
    if events := self._event_writer():
      with self._errors_of_files():
        events.write_histograms(step, dict(histograms))
        events.write_images(step, {name: image[None] for name, image in images.items()})
        self._send_events()

  def truncate_after(self, step: int) -> None:
    """Forgets everything after `step`, the step that a run resumes from; -1 forgets all, for a run that starts anew.

    TensorBoard gets a restart record, which makes it drop later steps of the event files before it.
    """
    if not self._active:
      return
    self._keep_until(step)
    if self._tensorboard and (event_files := sorted(p.name for p in self._directory.glob('events.out.tfevents.*'))):
      self._write_restart_event(step + 1, after=event_files[-1])

  def flush(self) -> None:
    """Waits until everything that was written is where others can read it.

    Raises:
      OSError: the object store refuses it.
    """
    if self._appender is not None:
      self._appender.flush()

  def close(self) -> None:
    """Closes the event file, and ends the thread that sends.

    Raises:
      OSError: as `flush`, unless it was raised before.
    """
    with contextlib.ExitStack() as stack:
      if self._appender is not None:
        stack.callback(self._appender.close)
      self._close_events()

  def _close_events(self) -> None:
    if self._events is None:
      return
    with self._errors_of_files():
      self._send_events()
      self._events.close()
    self._events = None
    if self._local is not None:
      self._local.cleanup()

  def _send_events(self) -> None:
    """Writes the events out, and hands what is new of them to the thread that sends."""
    self._events.flush()
    if self._appender is None:
      return
    for path in pathlib.Path(self._local.name).iterdir():
      with path.open('rb') as file:
        file.seek(self._sent.get(path.name, 0))
        new = file.read()
        self._sent[path.name] = file.tell()
      if new:
        self._appender.append(self._directory / path.name, new)

  def _open(self, metrics: Mapping[str, SupportsFloat]) -> dict[str, int | float]:
    """Returns metrics as Python's numbers; before the first line it makes the folder and finds the last steps."""
    plain = {name: _plain(name, value) for name, value in metrics.items()}
    if not self._opened:
      self._directory.mkdir(parents=True, exist_ok=True)
      self._keep_until(None)
    return plain

  def _keep_until(self, step: int | None) -> None:
    self._opened = self._directory.is_dir()
    self._lines.cut(step)
    self._expert_lines.cut(step)
    if self._appender is not None:
      remove_unfinished(self._directory)

  def _write_scalars(self, step: int, plain: Mapping[str, float]) -> None:
    if events := self._event_writer():
      with self._errors_of_files():
        events.write_scalars(step, dict(plain))
        self._send_events()

  def _event_writer(self) -> Any:
    if self._active and self._tensorboard and self._events is None:
      from switch_jax.data import quiet_tensorflow  # noqa: F401, I001  seconds; and clu would import it loudly
      from clu import metric_writers

      self._directory.mkdir(parents=True, exist_ok=True)
      self._local = tempfile.TemporaryDirectory(prefix='switch_jax_events_') if self._appender else None
      with self._errors_of_files():
        self._events = metric_writers.SummaryWriter(self._local.name if self._local else os.fspath(self._directory))
    return self._events

  @contextlib.contextmanager
  def _errors_of_files(self) -> Iterator[None]:
    """Turns TensorFlow's errors, of a full disk for example, into those of Python's own files."""
    from switch_jax.data.quiet_tensorflow import tf

    try:
      yield
    except tf.errors.OpError as error:
      self._events = None  # closing it would only fail again
      what = re.sub(r'^{{.*?}} ', '', first_line(error))  # the name of the operation
      raise OSError(f"TensorBoard's file in {self._directory}: {what}") from error

  def _write_restart_event(self, first_step: int, after: str) -> None:
    """Tells TensorBoard that the run starts again at `first_step`.

    It reads event files in the order of their names and, at such a record, drops what it has of that step and later
    ones. TensorFlow's own writer has no way to write it, so it gets a file of its own, whose name makes it the next one
    after the file `after`.
    """
    from switch_jax.data.quiet_tensorflow import tf

    self._close_events()
    log = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    event = tf.compat.v1.Event(wall_time=time.time(), step=first_step, session_log=log)
    path = self._directory / f'{after}.restart_{first_step}'
    with self._errors_of_files(), tf.io.TFRecordWriter(os.fspath(path)) as file:
      for _ in range(2):  # the first such record of a run is taken for its start and drops nothing
        file.write(event.SerializeToString())


def _plain(name: str, value: Any) -> int | float:
  """Returns a scalar as a Python number; a float32 keeps its own short decimal form (0.1, not 0.10000000149011612)."""
  array = np.asarray(value)
  if array.shape != () or (array.dtype.kind not in 'biuf' and array.dtype.name != 'bfloat16'):
    raise ValueError(f'metric {name!r} is {value!r}; a metric must be one number.')
  if array.dtype.kind in 'biu':
    return int(array)
  return float(array) if array.dtype == np.float64 else float(str(array.astype(np.float32)))
