"""Verifies the checkpoints of a run: all their files are as they were written. Needs no model and no JAX.

  python -m switch_jax.checkpoints verify MODEL_DIR
  python -m switch_jax.checkpoints verify MODEL_DIR/checkpoints/STEP

Prints a line for each step, and how far it is while that takes long. Exit status 1 if anything is damaged.
"""

import sys
import time
from collections.abc import Sequence

from etils import epath
from tqdm import tqdm

from switch_jax import launch
from switch_jax.checkpoints import checksums
from switch_jax.config import ConfigError, first_line
from switch_jax.folders.model_dir import FILES, split_step


def verify_step(folder: epath.Path) -> tuple[bool, str]:
  """Reads all files of a step; returns whether it is whole, and in words what was found."""
  if not (folder / FILES).exists():
    return False, f'not complete: there is no {FILES}'
  began = time.monotonic()
  try:
    recorded = checksums.read_record(folder / FILES)
    size = sum(file.size for file in recorded.values())
    bar = tqdm(total=size, unit='B', unit_scale=True, desc=f'step {folder.name}', leave=False, disable=None)
    with bar:
      checksums.check(folder, recorded, bar.update)
  except (OSError, ValueError) as error:
    return False, f'damaged: {first_line(error)}'
  what = f'{len(recorded)} files, {size / 1e6:.1f} MB'
  if not all(file.checksum for file in recorded.values()):
    return True, f'sizes are right ({what}); an older version wrote it, without checksums'
  return True, f'whole ({what}, {time.monotonic() - began:.1f} s)'


def _run(argv: Sequence[str]) -> int:
  parser = launch.ArgumentParser(prog='python -m switch_jax.checkpoints', description=(__doc__ or '').split('\n')[0])
  verify = parser.add_subparsers(required=True, metavar='verify').add_parser(
    'verify', help='compare files with checksums'
  )
  verify.add_argument('path', metavar='MODEL_DIR', help='of a run, or MODEL_DIR/checkpoints/STEP; local or gs://')
  verify.add_argument('--debug', action='store_true', help='print tracebacks')
  path = parser.parse_args(argv).path
  place, step = split_step(path)
  steps = place.numbered_steps() if step is None else [step]
  if not steps or not place.step(steps[0]).is_dir():
    raise ConfigError(f'there is no checkpoint in {path}; give a MODEL_DIR, or MODEL_DIR/checkpoints/STEP.')
  damaged = 0
  for number in steps:
    is_whole, found = verify_step(place.step(number))
    damaged += not is_whole
    print(f'step {number}: {found}', flush=True)
  return 1 if damaged else 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line and returns the exit status: 0, 1 for damage or an error, 130 after Ctrl-C."""
  argv = sys.argv[1:] if argv is None else argv
  return launch.exit_status(_run, argv, interrupted='nothing was changed')


if __name__ == '__main__':
  sys.exit(main())
