"""A teacher's distributions in files, keyed by the position in the data: written once, read by every student.

A folder holds `log_probabilities` and, where not the whole vocabulary is kept, `ids`: zarr arrays `[batches, rows,
targets length, k]`, of which entry n belongs to batch n of the training data. `teacher_logits.json` says of which data,
teacher and temperature, and how many batches are there; `position_<n>` is where the data goes on.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorstore
from etils import epath

from switch_jax.config import ConfigError, RunConfig
from switch_jax.data.features import NEW_IN_FINGERPRINT
from switch_jax.data.prefetch import Prefetcher
from switch_jax.distillation.soft_targets import SoftTargets
from switch_jax.folders.model_dir import OWNER
from switch_jax.parallel import Layout
from switch_jax.parallel.hosts import LONG_WORK, exchange

RECORD = 'teacher_logits.json'
# The entries of a batch that come from these files, and the names of the arrays.
LOG_PROBABILITIES, IDS = 'teacher_log_probabilities', 'teacher_ids'
_FORMAT = 1
# Batches in one file of an array: what is lost at most when the writer is killed.
BATCHES_PER_FILE = 16
_CACHE_BYTES = 512 * 2**20


def _spec(folder: epath.Path, name: str) -> dict[str, Any]:
  place = os.fspath(folder / name)
  return {'driver': 'zarr', 'kvstore': place if '://' in place else f'file://{os.path.abspath(place)}'}


def read_record(folder: str, remedy: str) -> dict[str, Any]:
  """Returns what `teacher_logits.json` says.

  Raises:
    ConfigError: there is none, or it cannot be read.
  """
  path = epath.Path(folder) / RECORD
  try:
    record = json.loads(path.read_text())
    if record['format'] != _FORMAT:
      raise ValueError(f'format {record["format"]}; this version reads format {_FORMAT}')
    return record
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ConfigError(
      f"DistillationConfig.teacher_logits is {folder!r}, which holds no teacher's logits ({type(error).__name__}: "
      f'{error}). {remedy}'
    ) from None


def check_same(folder: str, saved: Mapping[str, Any], wanted: Mapping[str, Any], remedy: str) -> None:
  """Raises a `ConfigError` that names every fact of `wanted` that a folder's record has another value of."""
  flat = lambda facts: {**facts.get('data', {}), **{n: v for n, v in facts.items() if n != 'data'}}  # noqa: E731
  saved, wanted = flat(saved), flat(wanted)
  short = lambda value: repr(value[:16]) if isinstance(value, str) and len(value) == 64 else repr(value)  # noqa: E731
  differ = [
    f'{n} is {short(saved.get(n))} there and {short(v)} here'
    for n, v in wanted.items()
    if saved.get(n) != v and not (n in NEW_IN_FINGERPRINT and n not in saved)
  ]
  if differ:
    raise ConfigError(f'{folder} holds logits of another teacher or other data: {"; ".join(differ)}. {remedy}')


class TeacherLogitsWriter:
  """Writes the distributions of one batch after the other.

  Args:
    folder: where to; made if it is not there.
    facts: of which data, teacher and temperature; compared with what is there.
    shape: of one batch, `[rows, targets length, k]`.
    num_batches: that will be written in all.
    vocab_size: `ids` are kept if k is smaller.
    dtype: of `log_probabilities`.
    rows_per_shard: rows that a shard of the mesh holds; they lie in a file together.

  Attributes:
    batches: that are written for good.

  Raises:
    ConfigError: something else is in the folder, or it cannot be written to.
  """

  def __init__(
    self,
    folder: str,
    facts: Mapping[str, Any],
    shape: tuple[int, int, int],
    num_batches: int,
    vocab_size: int,
    dtype: str,
    rows_per_shard: int,
  ):
    self._folder, self._facts = epath.Path(folder), json.loads(json.dumps(dict(facts)))
    self.batches = 0
    if (self._folder / RECORD).exists():
      remedy = 'Set it back, or give another --gin.TEACHER_LOGITS.'
      record = read_record(folder, remedy)
      check_same(folder, record, self._facts, remedy)
      self.batches = record['batches']
    elif self._folder.exists() and any(not p.name.startswith(OWNER) for p in self._folder.iterdir()):
      raise ConfigError(
        f'DistillationConfig.teacher_logits is {folder!r}, which holds other files; give a new --gin.TEACHER_LOGITS.'
      )
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise ConfigError(
        f'DistillationConfig.teacher_logits is {folder!r}, which cannot be made ({error}); give another folder.'
      ) from None
    dtypes = {LOG_PROBABILITIES: dtype}
    if shape[-1] < vocab_size:
      dtypes[IDS] = 'uint16' if vocab_size <= 2**16 else 'int32'
    self._arrays = {}
    if jax.process_index() == 0:
      for name, kind in dtypes.items():
        self._arrays[name] = self._make(name, kind, (num_batches, *shape), rows_per_shard)
    exchange('place of teacher logits', None, LONG_WORK)
    self._arrays = {name: tensorstore.open(_spec(self._folder, name)).result() for name in dtypes}
    self._pending: list[Any] = []
    self._held: list[Mapping[str, jax.Array]] = []

  def _make(self, name: str, dtype: str, shape: tuple[int, ...], rows: int) -> Any:
    spec = _spec(self._folder, name)
    if self.batches:
      store = tensorstore.open(spec).result()
      # Begun for a longer run it has room enough; nothing that is written is cut.
      return store.resize(exclusive_max=(max(store.shape[0], shape[0]), *shape[1:])).result()
    spec['metadata'] = {'chunks': [BATCHES_PER_FILE, rows, *shape[2:]], 'compressor': {'id': 'zstd', 'level': 3}}
    return tensorstore.open(spec, create=True, delete_existing=True, dtype=dtype, shape=shape).result()

  def add(self, targets: SoftTargets) -> None:
    """Takes the distributions of the next batch, on the mesh; they are written once a file is full."""
    arrays = {LOG_PROBABILITIES: targets.log_probabilities}
    if targets.ids is not None:
      arrays[IDS] = targets.ids
    for array in arrays.values():
      array.copy_to_host_async()
    self._held.append(arrays)
    if (self.batches + len(self._held)) % BATCHES_PER_FILE == 0:
      self._flush()

  def _flush(self) -> None:
    """Starts to write what is held; every host writes the rows that its devices hold."""
    first, last = self.batches, self.batches + len(self._held)
    for name, store in self._arrays.items():
      batches = [held[name] for held in self._held]
      for shards in zip(*(batch.addressable_shards for batch in batches), strict=True):
        if shards[0].replica_id == 0:
          values = np.stack([np.asarray(shard.data) for shard in shards]).astype(store.dtype.numpy_dtype)
          self._pending.append(store[(slice(first, last), *shards[0].index)].write(values))
    self._held, self.batches = [], last

  def commit(self, save_position: Any) -> None:
    """Waits for what is being written, and records it together with the position in the data.

    Args:
      save_position: writes the position after the batches added into a folder that it is given.

    Raises:
      ConfigError: the disk refuses.
    """
    self._flush()
    try:
      for future in self._pending:
        future.result()
    except ValueError as error:  # TensorStore's
      raise ConfigError(
        f'{self._folder} can no longer be written to: {str(error).splitlines()[0]}. See to the cause and run the same '
        'command again to go on.'
      ) from error
    self._pending = []
    position = self.position
    position.mkdir(parents=True, exist_ok=True)
    save_position(position)
    exchange('teacher logits', None, LONG_WORK)
    if jax.process_index() == 0:
      temporary = self._folder / f'{RECORD}.new'
      temporary.write_text(json.dumps({'format': _FORMAT, **self._facts, 'batches': self.batches}, indent=1))
      temporary.replace(self._folder / RECORD)
      for old in self._folder.glob('position_*'):
        if old.name != position.name:
          old.rmtree()

  @property
  def position(self) -> epath.Path:
    """The folder of the data's position after the batches written."""
    return self._folder / f'position_{self.batches}'


class TeacherLogitsReader(Iterator[dict[str, jax.Array]]):
  """Endless entries of the batches of a student's run, read ahead on a thread.

  Args:
    run: the student's run.
    fingerprint: of its data.
    layout: its mesh; each host reads the rows of its devices.
    first: the number of the first batch.

  Attributes:
    record: what `teacher_logits.json` says.

  Raises:
    ConfigError: the files are of other data, another temperature or too few batches.
  """

  def __init__(self, run: RunConfig, fingerprint: Mapping[str, Any], layout: Layout, first: int):
    config = run.distillation
    folder = config.teacher_logits
    again = 'Write them for this run: the same command with --run_mode=teacher and a new --gin.TEACHER_LOGITS.'
    self.record = read_record(folder, again)
    wanted = {'data': json.loads(json.dumps(dict(fingerprint))), 'temperature': config.temperature}
    check_same(folder, self.record, {**wanted, 'vocab_size': run.model.vocab_size}, again)
    if self.record['batches'] < run.train_steps:
      raise ConfigError(
        f'{folder} holds the logits of {self.record["batches"]:,} batches, and this run has {run.train_steps:,} steps; '
        'the same command with --run_mode=teacher writes the others.'
      )
    context = tensorstore.Context({'cache_pool': {'total_bytes_limit': _CACHE_BYTES}})
    names = [LOG_PROBABILITIES] + ([IDS] if self.record['top_k'] < self.record['vocab_size'] else [])
    try:
      self._arrays = {
        name: tensorstore.open(_spec(epath.Path(folder), name), context=context, recheck_cached_data='open').result()
        for name in names
      }
    except ValueError as error:  # TensorStore's
      raise ConfigError(f'{folder} is damaged: {str(error).splitlines()[0]}. {again}') from None
    self._sharding, self._next = layout.batch_sharding(), first
    self._prefetcher = Prefetcher(self._read, run.data.prefetch)

  def _read(self) -> dict[str, jax.Array]:
    number, self._next = self._next, self._next + 1
    return {name: self._to_mesh(store[number], name == IDS) for name, store in self._arrays.items()}

  def _to_mesh(self, batch: Any, is_ids: bool) -> jax.Array:
    dtype = np.int32 if is_ids else np.float32
    read = lambda index: batch[index].read().result().astype(dtype)  # noqa: E731
    return jax.make_array_from_callback(batch.shape, self._sharding, read)

  def __next__(self) -> dict[str, jax.Array]:
    """Returns the next batch's entries, arrays `[rows, targets length, k]` laid out as the batch."""
    return self._prefetcher.next()

  def close(self) -> None:
    """Stops the thread."""
    self._prefetcher.close()
