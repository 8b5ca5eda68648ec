"""Predictions for the lines or rows of a file: JSON lines or a table in, JSON lines out, in the same order, none lost.

While a run is under way its lines lie in `OUTPUT.partial`, beside `OUTPUT.partial.json` with the settings they were
made with. Every line of the input that is not blank gives exactly one line there, so that the number of whole lines
says where to go on. A run that is finished renames the file.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from switch_jax.config import ConfigError, PredictionConfig
from switch_jax.data.tables import BINARY_SUFFIXES
from switch_jax.data.text_lines import SNIFFED_BYTES, check_encoding
from switch_jax.folders.claim import Claim
from switch_jax.folders.metric_lines import replace_file
from switch_jax.folders.model_dir import owner_beside
from switch_jax.inference.generator import Generator
from switch_jax.inference.prediction_inputs import Inputs, Line, check_table, read_lines
from switch_jax.parallel.ownership import owned

_SECONDS_BETWEEN_LINES = 2.0


def _settings(config: PredictionConfig, step: int, size: int) -> dict[str, Any]:
  """Returns everything that decides what the output holds."""
  settings = config.to_json() | {'step': step, 'input_bytes': size}
  for name in ('mesh', 'output_file', 'batch_size'):
    settings.pop(name)
  settings['inputs_key'] = config.inputs_key or 'inputs'
  if config.template is None:  # older versions do not have it
    settings.pop('template')
  if config.undecodable == 'refuse':
    settings.pop('undecodable')
  return settings


class _Output:
  """The output under way: whole lines of it, and the settings beside it."""

  def __init__(self, config: PredictionConfig, settings: Mapping[str, Any]):
    self._final = epath.Path(config.output_file)
    self._partial = epath.Path(f'{config.output_file}.partial')
    self._sidecar = epath.Path(f'{config.output_file}.partial.json')
    self._settings = json.loads(json.dumps(settings))
    self._file: Any = None
    self._open = contextlib.ExitStack()
    self._active = jax.process_index() == 0

  def open(self) -> int:
    """Opens it for writing; returns how many lines it has.

    Raises:
      ConfigError: it was begun with other settings, or cannot be written.
    """
    whole = b''
    if self._partial.exists() and self._sidecar.exists():
      try:
        begun = json.loads(self._sidecar.read_text())
      except ValueError:
        begun = {}
      differ = sorted(n for n in {*begun, *self._settings} if begun.get(n) != self._settings.get(n))
      if differ:
        changes = ', '.join(f'{n} was {begun.get(n)!r} and is {self._settings.get(n)!r}' for n in differ)
        raise ConfigError(
          f'{self._partial} was begun with other settings ({changes}); set them back to go on, or remove the file to '
          'begin anew.'
        )
      whole = self._partial.read_bytes()
      whole = whole[: whole.rfind(b'\n') + 1]
    if self._active:
      try:
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        # A torn last line goes. The lines come before the settings that vouch for them.
        self._file = self._open.enter_context(self._partial.open('wb'))
        self._file.write(whole)
        self._file.flush()
        replace_file(self._sidecar, json.dumps(self._settings, indent=2) + '\n')
      except OSError as error:
        raise ConfigError(f'{self._partial} cannot be written ({error}); name another output_file.') from error
    return whole.count(b'\n')

  def write(self, records: list[dict[str, Any]]) -> None:
    """Adds lines; once this returns they survive the end of the process."""
    if self._active:
      lines = (json.dumps(record, ensure_ascii=False, allow_nan=False) + '\n' for record in records)
      self._file.write(''.join(lines).encode('utf-8', 'replace'))  # a model of bytes may predict what is no text
      self._file.flush()

  def close(self, finished: bool) -> None:
    """Closes the file, and gives it its name if it is finished."""
    if self._active and self._file is not None:
      self._open.close()
      if finished:
        self._partial.replace(self._final)
        self._sidecar.unlink()


def predict_file(config: PredictionConfig) -> int:
  """Writes a prediction for every line of the input file, going on where an earlier run was killed.

  A line becomes its own object with `prediction` and `score` (or the names that are configured), and `"was_cut": true`
  where its text was longer than the inputs; a malformed one becomes `{"line": number, "error": ...}`, and its number is
  printed. A score that is no number, as a model with NaN in it gives, is null.

  Returns:
    The exit status: 1 if a line was malformed, otherwise 0.

  Raises:
    ConfigError: a file cannot be read or written, is no UTF-8 text from its beginning on, another process writes it, or
      there is no such model.
  """
  source, target = epath.Path(config.input_file), epath.Path(config.output_file)
  if not source.is_file():
    raise ConfigError(f'input_file is {config.input_file!r}, and there is no such file; set --gin.INPUT_FILE.')
  if source.suffix not in BINARY_SUFFIXES:
    with source.open('rb') as file:
      check_encoding(config.input_file, file.read(SNIFFED_BYTES))
  if _is_whole(target):
    return 0
  with owned(owner_beside(target), f'OUTPUT_FILE {target}', 'name another --gin.OUTPUT_FILE') as claim:
    # Whoever had the claim before may have finished.
    return 0 if _is_whole(target) else _predict(config, claim)


def _is_whole(target: epath.Path) -> bool:
  """Whether there is nothing left to do, which is said."""
  if target.exists():
    print(f'{target} is there and whole; nothing to do. Remove it to make it anew, or name another output_file.')
  return target.exists()


def _predict(config: PredictionConfig, claim: Claim) -> int:
  source, target = epath.Path(config.input_file), epath.Path(config.output_file)
  generator = Generator.from_checkpoint(
    config.model_dir,
    config.step,
    vocabulary=config.vocabulary,
    add_eos=config.add_eos,
    decoding=config.decoding,
    mesh=config.mesh,
    inputs_length=config.inputs_length,
    targets_length=config.targets_length,
    batch_size=config.batch_size,
  )
  added = (config.prediction_field, config.score_field, 'was_cut')
  inputs = Inputs.of(config, generator.model.record.get('template'))
  check_table(source, inputs, added)
  output = _Output(config, _settings(config, generator.model.step, source.stat().length))
  done, finished = output.open(), False
  progress = _Progress(sum(1 for _ in read_lines(source, inputs, added)), done)
  malformed, cut, seen, waiting = 0, 0, 0, []

  def write(lines: list[Line]) -> int:
    whole = [(seen + i, x.text) for i, x in enumerate(lines) if x.record is not None]
    predictions = iter(generator.predict([text for _, text in whole], [number for number, _ in whole]))
    records, cut = [], 0
    for line in lines:
      if line.record is None:
        records.append({'line': line.number, 'error': line.error})
        continue
      prediction = next(predictions)
      score = prediction.score if math.isfinite(prediction.score) else None
      record = line.record | {config.prediction_field: prediction.text, config.score_field: score}
      records.append(record | {'was_cut': True} if prediction.was_cut else record)
      cut += prediction.was_cut
    claim.check()
    output.write(records)
    return cut

  try:
    for index, line in enumerate(read_lines(source, inputs, added)):
      if line.record is None:
        malformed += 1
        progress.note(f'{source} line {line.number} is malformed: {line.error}')
      if index < done:
        seen = index + 1
        continue
      waiting.append(line)
      if len(waiting) == config.batch_size:
        cut += write(waiting)
        seen, waiting = index + 1, []
        progress.update(seen)
    if waiting:
      cut += write(waiting)
      progress.update(seen + len(waiting))
    finished = True
  finally:
    output.close(finished)
  if cut:
    progress.note(f'{cut} texts were longer than the inputs and were cut')
  if malformed:
    progress.note(f'error: {malformed} malformed lines have an error in place of a prediction')
  progress.note(f'wrote {target}')
  return 1 if malformed else 0


class _Progress:
  """Shows how many lines are behind, at most every two seconds."""

  def __init__(self, total: int, done: int):
    self._total, self._first, self._began = total, done, time.monotonic()
    self._last = self._began
    if done:
      self.note(f'going on after {done:,} of {total:,} lines')

  def update(self, done: int) -> None:
    now = time.monotonic()
    if done < self._total and now - self._last < _SECONDS_BETWEEN_LINES:
      return
    self._last = now
    speed = (done - self._first) / max(now - self._began, 1e-9)
    self.note(f'{done:,} of {self._total:,} lines | {speed:,.1f} lines/s | {(self._total - done) / speed:,.0f} s left')

  def note(self, text: str) -> None:
    if jax.process_index() == 0:
      print(text, file=sys.stderr, flush=True)
