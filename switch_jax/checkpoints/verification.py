"""Recording and verifying the files of a step by many hosts at once: none of them reads what all have written.

Written: each host sums the arrays that it has written itself, and the first one what is left. Verified: which files a
host's arrays lie in only Orbax knows, so each host reads every n-th file, and all hosts come to the same end.
"""

import jax
from etils import epath

from switch_jax.checkpoints import checksums
from switch_jax.config import first_line
from switch_jax.folders.model_dir import FILES, STATE
from switch_jax.parallel.hosts import LONG_WORK, exchange

# What a host has summed of a step that is being written; its number follows.
_OF_PROCESS = 'files.of_process_'


def sum_own_arrays(folder: epath.Path) -> None:
  """Sums the files of arrays that this host has just written into the folder of a step; all hosts call it.

  With several hosts each has a folder of OCDBT to itself, which the others only refer to.
  """
  own = f'ocdbt.process_{jax.process_index()}'
  # On local disks Orbax renames the folder when all is written.
  if place := next((path for path in folder.glob(f'{STATE}*') if (path / own).is_dir()), None):
    sums = checksums.measure(place, checksums.list_files(place / own, f'{own}/'))
    record = {f'{STATE}/{name}': file for name, file in sums.items()}
    checksums.write_record(folder / f'{_OF_PROCESS}{jax.process_index()}', record)


def record_step(folder: epath.Path) -> None:
  """Writes `files.json` of a step, when all else is written; the first host calls it, after `sum_own_arrays`."""
  files: dict[str, checksums.File] = {}
  for record in folder.glob(f'{_OF_PROCESS}*'):
    files |= checksums.read_record(record)
    record.unlink()
  others = [name for name in checksums.list_files(folder) if name not in files]
  checksums.write_record(folder / FILES, files | checksums.measure(folder, others))


def find_damage(folder: epath.Path) -> Exception | None:
  """Compares the files of a step with its `files.json`; all hosts call it and get the same answer, the first damage."""
  problem: Exception | None = None
  try:
    recorded = sorted(checksums.read_record(folder / FILES).items())
    checksums.check(folder, dict(recorded[jax.process_index() :: jax.process_count()]))
  except (OSError, ValueError) as error:
    problem = error
  if jax.process_count() == 1:
    return problem
  of_hosts = exchange(f'share of checkpoint {folder.name}', first_line(problem) if problem else '', LONG_WORK)
  return next((ValueError(text) for text in of_hosts if text), None)
