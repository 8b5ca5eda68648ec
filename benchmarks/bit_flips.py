"""Damages a checkpoint in random places, one at a time, and counts how often it is refused before a value is read.

  python benchmarks/bit_flips.py
  python benchmarks/bit_flips.py --model_dir=runs/quickstart --places=200

A place is one flipped bit, or a range of 4 KB of zeros, at a random offset of a random file of the newest step: half of
the files are chosen by their number, so that small ones have their share, and half by their size. The MODEL_DIR is
copied first; without one a checkpoint of 4 MB is made. Exit status 0 if every damage is found and named.
"""

import argparse
import pathlib
import random
import shutil
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from switch_jax.checkpoints import CheckpointError, CheckpointStore
from switch_jax.config import CheckpointConfig

ZEROED = 4096


def make_checkpoints(folder: pathlib.Path, steps: tuple[int, ...] = (10, 20)) -> None:
  """Saves steps of random parameters with a position in the data."""
  import numpy as np

  store = CheckpointStore(folder, CheckpointConfig(keep=None))
  for step in steps:
    chance = np.random.default_rng(step)
    params = {name: chance.normal(size=(512, 1024)).astype(np.float32) for name in ('wi', 'wo')}
    store.save(
      step,
      {'params': params, 'step': np.int32(step)},
      {'identity': {'random_seed': step}},
      lambda data: (data / 'stream_0').write_bytes(bytes(range(256)) * 20),
    )
  store.close()


def files_of(step: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files of a step that have any byte."""
  return sorted(path for path in step.rglob('*') if path.is_file() and path.stat().st_size)


def damage(files: list[pathlib.Path], kind: str, by_size: bool, chance: random.Random) -> tuple[pathlib.Path, bytes]:
  """Changes bytes of one file; returns it and what it held."""
  sizes = [path.stat().st_size for path in files]
  while True:
    path = chance.choices(files, sizes)[0] if by_size else chance.choice(files)
    before = path.read_bytes()
    changed, offset = bytearray(before), chance.randrange(len(before))
    if kind == 'bit':
      changed[offset] ^= 1 << chance.randrange(8)
    else:
      changed[offset : offset + ZEROED] = bytes(len(changed[offset : offset + ZEROED]))
    if changed != before:  # zeros may have been there
      path.write_bytes(changed)
      return path, before


def is_refused(model_dir: pathlib.Path, step: int, file: str) -> bool:
  """Whether a step is refused with the name of the damaged file."""
  try:
    CheckpointStore(model_dir).restore_params(step)
  except CheckpointError as error:
    return f'step {step} is damaged' in str(error) and file in str(error)
  return False


def count_refused(model_dir: pathlib.Path, places: int, kind: str, seed: int) -> int:
  """Damages the newest step in so many places, mending it after each; returns how often that was found."""
  step, chance, refused = CheckpointStore(model_dir).steps()[-1], random.Random(seed), 0
  folder = model_dir / 'checkpoints' / str(step)
  for place in range(places):
    path, before = damage(files_of(folder), kind, place % 2 == 0, chance)
    name = str(path.relative_to(folder))
    if is_refused(model_dir, step, name):
      refused += 1
    else:
      print(f'NOT FOUND: {kind} in {name}', flush=True)
    path.write_bytes(before)
  CheckpointStore(model_dir).check_files(step)  # all is mended
  return refused


def main() -> int:
  """Prints the counts; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model_dir', type=pathlib.Path)
  parser.add_argument('--places', type=int, default=200)
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix='bit_flips_') as folder:
    copy = pathlib.Path(folder) / 'run'
    if flags.model_dir:
      shutil.copytree(flags.model_dir, copy)
    else:
      make_checkpoints(copy)
    missed = 0
    for kind, what in (('bit', 'single flipped bits'), ('zeros', f'ranges of {ZEROED} zeros')):
      refused = count_refused(copy, flags.places, kind, flags.seed)
      missed += flags.places - refused
      print(f'{what}: {refused} of {flags.places} found and named', flush=True)
  return 1 if missed else 0


if __name__ == '__main__':
  sys.exit(main())
