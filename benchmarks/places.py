"""Where the runs of a benchmark lie: in a local folder, or in a bucket that a server on loopback has."""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from runs import ROOT

sys.path.insert(0, str(ROOT))
from switch_jax.folders.model_dir import ModelDir
from tests.object_store.bucket import Bucket, open_bucket, reason_to_skip


class Local:
  """Runs whose MODEL_DIRs lie in a local folder."""

  def __init__(self, folder: pathlib.Path):
    self.root, self._folder = str(folder), folder

  def start(self, arguments: list[str], output: IO[str]) -> subprocess.Popen:
    """Starts `python ARGUMENTS`."""
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)

  def files(self, run: str) -> list[str]:
    """Returns the names of all files of a run; they come and go meanwhile."""
    place = self._folder / run
    found = [pathlib.Path(folder, name) for folder, _, names in os.walk(place) for name in names]
    return sorted(str(path.relative_to(place)) for path in found)

  def folders(self, run: str) -> list[str]:
    """Returns the names of all folders of a run."""
    place = self._folder / run
    return sorted(str(pathlib.Path(top, name).relative_to(place)) for top, names, _ in os.walk(place) for name in names)

  def open(self, run: str) -> ModelDir:
    """Returns the folder of a run, to read from."""
    return ModelDir(self._folder / run)


class InBucket(Local):
  """Runs whose MODEL_DIRs lie in a bucket; what is read of them is copied first."""

  def __init__(self, folder: pathlib.Path, bucket: Bucket):
    super().__init__(folder)
    self.root, self._bucket = 'gs://bucket', bucket

  def start(self, arguments, output):
    # The bucket's own choice of XLA's options is for tests; here both places shall compute the same.
    return self._bucket.start(arguments, cwd=ROOT, stdout=output, env={'XLA_FLAGS': ''})

  def files(self, run):
    names = self._bucket.store.names(f'{run}/')
    return [name.removeprefix(f'{run}/') for name in names if not name.endswith('/')]

  def folders(self, run):
    return sorted({parent for name in self.files(run) for parent in map(str, pathlib.PurePosixPath(name).parents)})

  def open(self, run):
    for name in self.files(run):
      if name.endswith('metrics.jsonl'):
        path = self._folder / run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._bucket.store.get('bucket', f'{run}/{name}').data)
    return super().open(run)


@contextlib.contextmanager
def open_place(bucket: bool) -> Iterator[Local]:
  """Yields where the runs lie."""
  with tempfile.TemporaryDirectory(prefix='runs_') as name, contextlib.ExitStack() as stack:
    folder = pathlib.Path(name)
    if not bucket:
      yield Local(folder)
      return
    if reason := reason_to_skip():
      raise SystemExit(f'--bucket cannot be done here: {reason}')
    copies = folder / 'copies'
    copies.mkdir()
    yield InBucket(copies, stack.enter_context(open_bucket(folder)))
