"""Times saving and restoring a checkpoint with and without checksums.

  python benchmarks/checkpoint_speed.py --megabytes=100
  python benchmarks/checkpoint_speed.py --megabytes=1000

The files are in the page cache and the disk is local, which is the worst case for the share of checksums: nothing else
waits for anything. Restores with and without take turns; medians are printed. `sum` is the time in which the files are
summed in the background of a save, off the training thread.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import jax
import numpy as np
from etils import epath

from switch_jax.checkpoints import CheckpointStore, checksums
from switch_jax.config import CheckpointConfig

ARRAY = 4 * 2**20  # values of an array; 16 MB


def measure(folder: pathlib.Path, megabytes: int, repeats: int) -> dict[str, float]:
  """Returns seconds by what was done."""
  chance = np.random.default_rng(0)
  number = max(1, round(megabytes * 1e6 / 4 / ARRAY))
  params = {
    f'w{i}': jax.numpy.asarray(chance.standard_normal((2048, ARRAY // 2048), np.float32)) for i in range(number)
  }
  store = CheckpointStore(folder, CheckpointConfig(keep=None))
  began = time.perf_counter()
  store.save(1, {'params': params}, {})
  copied = time.perf_counter()
  store.wait()
  seconds = {'save: training waits': copied - began, 'save: in the background': time.perf_counter() - copied}
  step = epath.Path(store.path(1))
  summing = []
  for _ in range(repeats):
    began = time.perf_counter()
    checksums.measure(step, checksums.list_files(step))
    summing.append(time.perf_counter() - began)
  seconds['sum'] = statistics.median(summing)
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), params)

  def restore() -> float:
    began = time.perf_counter()
    jax.block_until_ready(CheckpointStore(folder).restore_params(1, abstract))
    return time.perf_counter() - began

  restore()
  with_sums, without = [], []
  for number in range(repeats):
    if number % 2:
      with_sums.append(restore())
    with mock.patch('switch_jax.checkpoints.store.find_damage', return_value=None):
      without.append(restore())
    if not number % 2:
      with_sums.append(restore())
  seconds['restore without checksums'] = statistics.median(without)
  seconds['restore with checksums'] = statistics.median(with_sums)
  return seconds


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--megabytes', type=int, default=100)
  parser.add_argument('--repeats', type=int, default=9)
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix='checkpoint_speed_') as folder:
    seconds = measure(pathlib.Path(folder), flags.megabytes, flags.repeats)
  for name, value in seconds.items():
    print(f'{name:<28} {value:.3f} s')
  share = seconds['sum'] / seconds['restore without checksums']
  print(f'checksums take {share:.1%} of the time of a restore without them')


if __name__ == '__main__':
  main()
