"""Files of JSON objects by step, a line each (`metrics.jsonl`, `expert_tokens.jsonl`): their one reader and one writer.

A line counts if it ends with a newline and is a JSON object in UTF-8 whose `step` is an integer. Whatever else stands
there is left out, and the reader says so: a last line without a newline is torn (a kill, or a run that still writes;
`"loss": 1.25` may be a part of 1.257), any other is damaged. JSON has no NaN and no infinity, so both are written as
`null` and read back as NaN.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from switch_jax.folders.remote import Appender, is_remote


@dataclasses.dataclass(frozen=True)
class Lines:
  """What a file holds.

  Attributes:
    records: one dictionary for each line that counts, in the order of the file; NaN where it says null.
    damaged: numbers, from 1, of the lines that are left out.
    torn: whether there is a last line without a newline, which is left out too.
  """

  records: list[dict[str, Any]]
  damaged: list[int]
  torn: bool


def read_lines(path: str | os.PathLike[str]) -> Lines:
  """Reads a file, local or `gs://`; one that is not there is empty."""
  lines, torn = _raw_lines(epath.Path(path))
  records = [_parse(line) for line in lines]
  return Lines(
    [{k: math.nan if v is None else v for k, v in record.items()} for record in records if record is not None],
    [number for number, record in enumerate(records, 1) if record is None],
    torn,
  )


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the records of a file; what is torn or damaged is left out."""
  return read_lines(path).records


class LineWriter:
  """Writes one file whose steps rise and stand once each.

  Args:
    path: of the file; its folder exists before the first line is written.
    appender: takes the lines on an object store; None writes each of them to the disk at once.

  Attributes:
    last_step: of the last line, as far as this writer has seen the file; None if there is none.
  """

  def __init__(self, path: epath.Path, appender: Appender | None = None):
    self._path, self._appender = path, appender
    self.last_step: int | None = None

  def cut(self, after: int | None = None) -> None:
    """Removes the lines after a step, and always those that do not count: the next one would be glued to a torn one.

    The file is replaced in one move, so a kill leaves the old one or the new one.
    """
    self._settle()
    lines, torn = _raw_lines(self._path)
    steps = {line: record['step'] for line in lines if (record := _parse(line)) is not None}
    kept = [line for line in lines if line in steps and (after is None or steps[line] <= after)]
    if torn or len(kept) < len(lines):
      replace_file(self._path, b''.join(kept))
    self.last_step = steps[kept[-1]] if kept else None

  def append(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds a line; the step of the last line may be written again and then replaces it.

    Raises:
      ValueError: the step is smaller than the last one.
    """
    if self.last_step is not None and step <= self.last_step:
      if step < self.last_step:
        raise ValueError(f'{self._path} ends with step {self.last_step} and step {step} was to be added after it.')
      self.cut(step - 1)
    if self._appender is not None:
      self._appender.append(self._path, _to_line(step, values).encode())
    else:
      with self._path.open('a') as file:
        file.write(_to_line(step, values))
    self.last_step = step

  def merge(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds values to the line of a step, whichever it is, or a new line in its place; the file is replaced."""
    self._settle()
    records = {record['step']: (line, record) for line in _raw_lines(self._path)[0] if (record := _parse(line))}
    whole = {**records[step][1], **values} if step in records else values
    lines = {known: line for known, (line, _) in records.items()} | {step: _to_line(step, whole).encode()}
    replace_file(self._path, b''.join(lines[known] for known in sorted(lines)))
    self.last_step = max(lines)

  def _settle(self) -> None:
    """Makes sure that the file can be read and replaced."""
    if self._appender is not None:
      self._appender.release()


def replace_file(path: epath.Path, data: bytes | str) -> None:
  """Writes a file in one move: a kill leaves what was there before, or the whole of the new one."""
  # An object appears whole; to rename it would be to copy it.
  written = path if is_remote(path) else path.parent / f'{path.name}.tmp'
  written.write_bytes(data.encode() if isinstance(data, str) else data)
  if written != path:
    written.replace(path)


def _raw_lines(path: epath.Path) -> tuple[list[bytes], bool]:
  """Returns the lines that end with a newline, with it, and whether anything follows them."""
  *lines, rest = path.read_bytes().split(b'\n') if path.exists() else [b'']
  return [line + b'\n' for line in lines], bool(rest)


def _parse(line: bytes) -> dict[str, Any] | None:
  """Returns the record of a line, or None if it does not count."""
  try:
    record = json.loads(line.decode())
  except (ValueError, RecursionError):
    return None
  return record if isinstance(record, dict) and type(record.get('step')) is int else None


def _to_line(step: int, values: Mapping[str, Any]) -> str:
  plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
  return json.dumps({'step': step, **plain}, allow_nan=False) + '\n'
