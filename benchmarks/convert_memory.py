"""Memory that a conversion takes, beyond importing the program: a synthetic checkpoint of some gigabytes, all formats.

python benchmarks/convert_memory.py --gigabytes 4 --folder /somewhere/with/room

Three conversions in processes of their own: T5X to ours, ours to Hugging Face, Hugging Face to T5X. The peak is the
kernel's (VmHWM) of the whole process; the baseline is that of one that imports the same modules and stops.
"""

import argparse
import itertools
import json
import pathlib
import shutil
import subprocess
import sys

_CHILD = """
import sys
from switch_jax import convert
from switch_jax.interop import conversion, infer_config, loading, own, upcycling
status = convert.main(sys.argv[1:]) if len(sys.argv) > 1 else 0
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
print('PEAK', status, peak.split()[1])
"""


def _run(*arguments: str) -> int:
  """Runs a conversion, or with no arguments the imports alone; returns the peak in KiB."""
  result = subprocess.run([sys.executable, '-c', _CHILD, *arguments], capture_output=True, text=True)
  if 'PEAK 0' not in result.stdout:
    raise SystemExit(result.stdout + result.stderr)
  return int(result.stdout.split()[-1])


def _write_source(folder: pathlib.Path, gigabytes: float) -> int:
  """Writes a T5X checkpoint of random numbers, Switch layers holding most of it; returns its bytes."""
  import numpy as np

  from switch_jax.config import ModelConfig, MoeConfig
  from switch_jax.interop.stored import Checkpoint, StoredArray
  from switch_jax.interop.t5x_writer import T5xWriter
  from switch_jax.model import parameter_shapes

  layer = 2 * 1024 * 4096 * 4
  experts = max(2, int(gigabytes * 1e9 / (4 * layer)))
  config = ModelConfig(
    vocab_size=32128, emb_dim=1024, num_heads=16, head_dim=64, mlp_dim=4096, num_encoder_layers=4,
    num_decoder_layers=4, moe=MoeConfig(num_experts=experts),
  )  # fmt: skip
  noise = np.random.default_rng(0).normal(size=2**20).astype(np.float32)

  def array(shape):
    fetch = lambda box: np.resize(noise, [axis.stop - axis.start for axis in box])  # noqa: E731
    return StoredArray(shape, fetch)

  checkpoint = Checkpoint('synthetic', {name: array(shape) for name, shape in parameter_shapes(config).items()})
  folder.mkdir(parents=True)
  writer = T5xWriter(folder, checkpoint, 'float32')
  for name, values in writer.outputs.items():
    rows = writer.row_multiple(name)
    for start in range(0, values.shape[0], rows):
      writer.write(name, start, values.rows(start, min(start + rows, values.shape[0])))
  writer.finish()
  return sum(4 * int(np.prod(values.shape)) for values in writer.outputs.values())


def main() -> None:
  """Prints one JSON object a conversion."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--gigabytes', type=float, default=4.0)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  flags = parser.parse_args()
  folder = flags.folder / 'convert_memory'
  places = {'t5x': folder / 'a', 'switch_jax': folder / 'b', 'huggingface': folder / 'c', 't5x again': folder / 'd'}
  try:
    size = _write_source(places['t5x'], flags.gigabytes)
    baseline = _run()
    formats = list(places)
    for source, target in itertools.pairwise(formats):
      arguments = [f'--{way}={name.split()[0]}:{places[name]}' for way, name in (('from', source), ('to', target))]
      peak = _run(*arguments)
      shutil.rmtree(places[source])
      above = (peak - baseline) * 1024 / 1e9
      print(
        json.dumps(
          {
            'from': source,
            'to': target.split()[0],
            'gigabytes': round(size / 1e9, 2),
            'baseline_gigabytes': round(baseline * 1024 / 1e9, 3),
            'above_baseline_gigabytes': round(above, 3),
          }
        ),
        flush=True,
      )
  finally:
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
  main()
