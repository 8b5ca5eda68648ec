"""Checkpoints: `MODEL_DIR/checkpoints/<step>/`, written in the background, each step whole or not there.

A step folder holds the state (`state/`, Orbax's own format), the position in the data (`data/`, files that the data
source writes itself), `config.json` (model, vocabulary, identity of the run), readable without this library, and the
sizes and checksums of all files (`files.json`). Everything is written into a temporary folder, which is renamed once it
is whole; a run killed while saving goes on from the step before, and so does one whose newest step is damaged.

Orbax's `CheckpointManager` counts any folder with a number for a name as a step, an empty one too, and then skips every
save up to that number without a word. So the steps are listed and pruned here, and only `AsyncCheckpointer` is used.
"""

import concurrent.futures
import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from switch_jax.checkpoints import checksums, step_folders
from switch_jax.checkpoints.compatibility import check_settings, check_shapes, check_version
from switch_jax.checkpoints.orbax_handlers import ArraysSave, FilesSave, SettledMetadata
from switch_jax.checkpoints.patience import said_if_slow
from switch_jax.checkpoints.retention import steps_to_remove
from switch_jax.checkpoints.step_folders import CheckpointError
from switch_jax.checkpoints.verification import find_damage, record_step, sum_own_arrays
from switch_jax.config import CheckpointConfig, ConfigError, first_line
from switch_jax.folders import checked_json
from switch_jax.folders.checked_json import Fields
from switch_jax.folders.model_dir import COMMITTED, CONFIG, DATA, FILES, STATE, ModelDir
from switch_jax.folders.remote import is_remote

# Orbax waits this long for all hosts to finish writing; its own 10 minutes are short for a slow network disk.
_COMMIT_SECONDS = 3600

# Objects in `config.json`, where they are there.
_SECTIONS = ('model', 'run', 'identity')

_logger = logging.getLogger(__name__)


class CheckpointStore:
  """The checkpoints of one MODEL_DIR.

  Every method is called by all hosts alike. Paths may be remote (`gs://...`).

  Args:
    model_dir: the run's folder. It is made if it is not there, unless the store only reads.
    config: which steps are kept (between two saves there may be one more); None opens the folder for reading only.

  Attributes:
    scores: `best_metric` of the steps that have been evaluated; the run fills it in.
    before_commit: called on the first host, off the caller's thread, when a step is whole but for its commit; what it
      raises makes the save fail.

  Raises:
    ConfigError: the folder cannot be made or written to, or is a file.
  """

  def __init__(self, model_dir: str | os.PathLike[str], config: CheckpointConfig | None = None):
    self._place = ModelDir(model_dir)
    self.model_dir, self.directory = self._place.path, self._place.checkpoints
    self.scores: dict[int, float] = {}
    self.before_commit: Callable[[], None] = lambda: None
    self._config = config
    self._saver: ocp.AsyncCheckpointer | None = None
    self._saving: int | None = None
    self._pruning: concurrent.futures.Future[None] | None = None
    self._saving_to: epath.Path  # the temporary folder of the step, once Orbax has made it
    self._warned: set[int] = set()
    self._whole: set[int] = set()  # steps whose files have been found to be as they were written
    self._damaged: dict[int, CheckpointError] = {}  # steps that were passed over for an older one
    if config is not None:
      step_folders.require_writable(self.model_dir, self.directory)

  # Which steps there are.

  def steps(self) -> list[int]:
    """Returns the complete steps, in rising order. Folders being written, empty or made by others are left out."""
    return [step for step in self._place.numbered_steps() if self._is_complete(step)]

  def latest_step(self) -> int | None:
    """Returns the newest complete step, or None. Warns once about newer folders that are not complete."""
    passed_over = []
    for step in reversed(self._place.numbered_steps()):
      if self._is_complete(step):
        break
      passed_over.append(step)
    else:
      step = None
    if news := [s for s in passed_over if s not in self._warned]:
      self._warned.update(news)
      names = ', '.join(str(self.path(s)) for s in news)
      instead = 'There is no complete checkpoint.' if step is None else f'The newest complete one is step {step}.'
      _logger.warning('Ignored, since no complete checkpoint is in it: %s. %s', names, instead)
    return step

  def latest_whole_step(self) -> int | None:
    """Returns the newest step that is not damaged, or None if there is no step; reads the files of that step.

    Damaged ones are said, and are no steps for this store any more: none is kept in place of a whole one.

    Raises:
      CheckpointError: all are damaged. Nothing begins anew over what somebody may want to save.
    """
    refused: dict[int, CheckpointError] = {}
    while (step := self.latest_step()) is not None:
      try:
        self.check_files(step)
        break
      except CheckpointError as error:
        refused[step] = self._damaged[step] = error
        self._warned.add(step)
    if refused and step is None:
      self._damaged.clear()
      raise next(iter(refused.values()))
    for damaged, why in refused.items():
      _logger.warning('The checkpoint of step %d is damaged (%s), going on from step %d.', damaged, why.__cause__, step)
    return step

  def path(self, step: int) -> epath.Path:
    """Returns the folder of a step."""
    return self._place.step(step)

  def _is_complete(self, step: int) -> bool:
    if step in self._damaged:
      return False
    path = self.path(step)
    files = (path / CONFIG, path / FILES, path / STATE / '_METADATA')
    # On stores without an atomic rename (gs://) a step is complete once Orbax has put its marker there.
    return all(file.is_file() for file in files) and ocp.utils.is_checkpoint_finalized(path)

  # Writing.

  def save(
    self,
    step: int,
    state: Any,
    config_json: Mapping[str, Any],
    write_position: Callable[[epath.Path], None] | None = None,
  ) -> None:
    """Saves one step; the arrays are written in the background while training goes on.

    Waits for the save before, if it is still under way. A step that is already there is left as it is.

    Args:
      step: the number of the step, which names the folder.
      state: a pytree of arrays. They are copied before this returns, so they may be donated afterwards.
      config_json: what `config.json` will hold; plain JSON. `check_identity` reads its `'identity'`.
      write_position: called with the (temporary) `data/` folder before this returns; writes the data source's position.

    Raises:
      CheckpointError: this save, or the one before, failed. Older checkpoints are untouched.
    """
    if self._config is None:
      raise ValueError('This CheckpointStore was opened for reading only; give it a CheckpointConfig.')
    config_text = json.dumps(config_json, indent=2, allow_nan=False) + '\n'
    self.wait()
    if self._is_complete(step):
      return
    if self._saver is None:
      options = ocp.options.AsyncOptions(timeout_secs=_COMMIT_SECONDS, post_finalization_callback=self._record)
      self._saver = ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(), checkpoint_metadata_store=SettledMetadata(), async_options=options
      )
      if jax.process_index() == 0:
        step_folders.remove_leftovers(self.directory)
    if jax.process_index() == 0:
      step_folders.move_aside(self.path(step))

    def write_files(directory: epath.Path) -> None:
      self._saving_to = directory.parent
      if jax.process_index() == 0:
        (directory.parent / CONFIG).write_text(config_text)
      if write_position is not None:
        write_position(directory)

    arrays = ArraysSave(state, written=lambda: sum_own_arrays(self._saving_to))
    items = {STATE: arrays, DATA: FilesSave(write_files)}
    self._saving = step
    self._damaged.pop(step, None)
    try:
      with said_if_slow(self.path(step)):
        self._saver.save(self.path(step), args=ocp.args.Composite(**items))
    except Exception as error:
      raise self._failed_save(step, error) from error

  def wait(self) -> None:
    """Blocks until the save under way is complete, and removes the steps that the policy does not keep.

    On an object store, where that is a request for each file, they are removed in the background until the next call.

    Raises:
      CheckpointError: that save failed (a full disk, for example).
    """
    if self._pruning is not None:
      pruning, self._pruning = self._pruning, None
      with said_if_slow(self.directory):
        pruning.result()
    if self._saver is None or self._saving is None:
      return
    try:
      with said_if_slow(self.path(self._saving)):
        self._saver.wait_until_finished()
    except Exception as error:
      raise self._failed_save(self._saving, error) from error
    saved, self._saving = self._saving, None
    if jax.process_index() != 0:
      return
    if is_remote(self.directory):
      thread = concurrent.futures.ThreadPoolExecutor(1)
      self._pruning = thread.submit(self._prune)
      thread.shutdown(wait=False)  # it ends when it has done this
    else:
      # Written after the checksums; only where folders cannot be renamed does it mean something.
      (self.path(saved) / COMMITTED).unlink(missing_ok=True)
      self._prune()

  def _prune(self) -> None:
    assert self._config is not None
    step_folders.remove_steps(self.path(step) for step in steps_to_remove(self.steps(), self._config, self.scores))

  def close(self) -> None:
    """Waits for the save under way and stops the background thread."""
    try:
      self.wait()
    finally:
      if self._saver is not None:
        self._saver.close()
        self._saver = None

  def _failed_save(self, step: int, error: Exception) -> CheckpointError:
    path, self._saving = self.path(step), None
    return CheckpointError(
      f'the checkpoint {path} could not be written: {first_line(error)}. Older checkpoints are untouched; see to the '
      'cause (free space and rights on the disk, say) and run the same command again to continue from the newest.'
    )

  def _record(self) -> None:
    """Lists the files of the step being written; Orbax calls it on one host when only the commit is left to do."""
    record_step(self._saving_to)
    self.before_commit()

  # Reading.

  def restore(self, step: int, abstract_state: Any) -> Any:
    """Reads the state of a step.

    Args:
      step: one of `steps()`.
      abstract_state: a pytree of `jax.ShapeDtypeStruct` with shardings, in the structure that was saved. The mesh need
        not be the one that the step was saved on.

    Returns:
      The arrays, laid out by those shardings.

    Raises:
      ConfigError: parameters of the checkpoint have other shapes, or there are others.
      CheckpointError: there is no such step, or its files are damaged.
    """
    self.check_files(step)
    check_shapes(self.path(step), self._metadata(step), abstract_state)
    return self._read(step, abstract_state)

  def restore_params(self, step: int, abstract_params: Any | None = None) -> Any:
    """Reads the parameters of a step only, without the optimizer's state.

    Args:
      step: one of `steps()`.
      abstract_params: a nested dict of `jax.ShapeDtypeStruct`; those without a sharding are read as numpy arrays. None
        reads all as numpy arrays in the dtype of the checkpoint.

    Returns:
      The nested dict of parameters.

    Raises:
      ConfigError, CheckpointError: as `restore`.
    """
    self.check_files(step)
    if abstract_params is None:
      abstract_params = jax.tree.map(lambda leaf: np.empty((), leaf.dtype), self._metadata(step)['params'])
    else:
      check_shapes(self.path(step), self._metadata(step), {'params': abstract_params}, below='params/')
      abstract_params = jax.tree.map(
        lambda leaf: np.empty((), leaf.dtype) if leaf.sharding is None else leaf, abstract_params
      )
    return self._read(step, {'params': abstract_params})['params']

  def restore_position(self, step: int, read: Callable[[epath.Path], None]) -> None:
    """Calls `read` with the `data/` folder of a step, which holds what `write_position` wrote there.

    Raises:
      CheckpointError: the step holds no position, or `read` failed on it.
    """
    self.check_files(step)
    path = self.path(step) / DATA
    if not (path.is_dir() and any(path.iterdir())):
      raise CheckpointError(f'{path} is empty: this checkpoint holds no position in the data. {self._remedy(step)}')
    try:
      read(path)
    except ConfigError:
      raise
    except Exception as error:
      raise CheckpointError(
        f'the position in the data cannot be read from {path}, its files are damaged: {first_line(error)}. '
        f'{self._remedy(step)}'
      ) from error

  def read_config(self, step: int) -> dict[str, Any]:
    """Returns what `config.json` of a step holds.

    Raises:
      CheckpointError: there is no such step, or the file is damaged.
      ConfigError: it records a model with fields that this version does not know.
    """
    self._require_step(step)
    path = self.path(step)
    try:
      recorded = checksums.read_record(path / FILES)
      checksums.check(path, {name: file for name, file in recorded.items() if name == CONFIG})
      record = checked_json.read(path, CONFIG)
      for name in _SECTIONS:
        if record.get(name) is not None:
          Fields(str(path / CONFIG), record).object(name)
    except (ConfigError, OSError, ValueError) as error:
      cause = first_line(error).replace(str(path / CONFIG), 'it').rstrip('.')
      raise CheckpointError(f'{path / CONFIG} is damaged: {cause}. {self._remedy(step)}') from error
    check_version(path / CONFIG, record)
    return record

  def check_identity(self, identity: Mapping[str, Any], section: str = 'identity') -> None:
    """Makes sure that the newest whole checkpoint, or the run that was begun without one yet, is the same run.

    Changes nothing; in a folder without either all is well.

    Args:
      identity: what the MODEL_DIR belongs to (`RunConfig.identity()`), one flat dictionary of dotted names.
      section: the entry of `config.json` it is compared with, which `save` was given in `config_json`.

    Raises:
      ConfigError: names every setting that differs, with both values.
    """
    step = self.latest_whole_step()
    if step is not None:
      check_settings(self.model_dir, step, self.read_config(step).get(section, {}), identity)
    elif (begun := self._place.read_begun()) is not None and isinstance(begun.get(section), dict):
      check_settings(self.model_dir, None, begun[section], identity)

  def check_files(self, step: int) -> None:
    """Raises a `CheckpointError` if a file of the step is missing or not as it was written. Reads each step once."""
    self._require_step(step)
    if step in self._whole:
      return
    if (problem := find_damage(self.path(step))) is not None:
      raise self._damaged_error(step, problem) from problem
    self._whole.add(step)

  def _metadata(self, step: int) -> Any:
    """Returns the saved tree with shapes and dtypes in place of arrays."""
    try:
      return ocp.StandardCheckpointHandler().metadata(self.path(step) / STATE).tree
    except Exception as error:
      raise self._damaged_error(step, error) from error

  def _read(self, step: int, abstract: Any) -> Any:
    """Reads the arrays that `abstract` names; its shapes have been checked."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=True)
    try:
      with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        return reader.restore(self.path(step), args=ocp.args.Composite(**{STATE: args}))[STATE]
    except MemoryError:
      raise
    except Exception as error:
      if 'RESOURCE_EXHAUSTED' in str(error):
        raise
      raise self._damaged_error(step, error) from error

  def _require_step(self, step: int) -> None:
    if step in self._damaged:
      raise self._damaged[step]
    if not self._is_complete(step):
      found = ', '.join(map(str, self.steps())) or 'none'
      raise CheckpointError(f'{self.path(step)} is no complete checkpoint. Steps that can be read: {found}.')

  def _damaged_error(self, step: int, error: Exception) -> CheckpointError:
    return CheckpointError(
      f'the checkpoint of step {step} is damaged: {first_line(error).rstrip(".")}. {self._remedy(step)}'
    )

  def _remedy(self, step: int) -> str:
    if self._config is None:
      others = ', '.join(str(s) for s in self.steps() if s != step)
      return f'Other steps of that run: {others}.' if others else 'That run has no other step.'
    older = [s for s in self.steps() if s < step]
    after = (
      f'the run then continues from step {older[-1]}' if older else 'it is the only one, so the run then starts anew'
    )
    return f'Delete the folder {self.path(step)}; {after}.'
