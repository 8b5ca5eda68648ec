"""How many rows of 512 bytes a second the local multilingual corpus feeds on two cores, and when the first one comes.

    pip install -e '.[demo]' && python benchmarks/feeding_speed.py

Rows of 512 inputs and 114 targets in batches of 64, as `switch_jax.data.TrainingSource` hands them to training. Three
ways, each in processes of its own:

    cached      the corpus is tokenised in the cache folder: what every run but the first of a vocabulary reads
    first run   an empty cache: the corpus is collected and tokenised before the first row comes
    uncached    nothing is tokenised before: SeqIO reads lines and tokenises each as it comes, as `docstrings`

Rows are full: packed, or cut to fill them. Seconds to the first row are given from opening the source, from the start
of the process with its imports, and as seconds of processor time from opening: that, and rows in a second of processor
time, tell more than the clock where other programs are at work.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

BEGAN = time.perf_counter()
ROOT = pathlib.Path(__file__).resolve().parent.parent
LENGTHS, BATCH = {'inputs': 512, 'targets': 114}, 64
WAYS = ('cached', 'first run', 'uncached')
UNCACHED = 'multilingual_lines'


def register(data):
  """Registers the task that tokenises lines as they come: this file is its task module."""
  from switch_jax.data import text_task
  from switch_jax.data.vocabularies import make_vocabulary
  from switch_jax.tasks import multilingual_text

  text_task.add_span_corruption_task(UNCACHED, multilingual_text.get_corpus, make_vocabulary(data.vocabulary))


def corpus_digest(data):
  """Returns what identifies the text."""
  del data
  from switch_jax.tasks import multilingual_text

  return multilingual_text.get_corpus().digest


def measure(way, vocabulary, seconds):
  """Returns rows a second, and the seconds to the first row, of one way in this process."""
  import jax
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  from switch_jax import data
  from switch_jax.config import DataConfig

  config = DataConfig(
    mixture_or_task_name=UNCACHED if way == 'uncached' else 'multilingual_span_corruption',
    task_module='feeding_speed' if way == 'uncached' else 'switch_jax.tasks.multilingual',
    feature_lengths=LENGTHS,
    batch_size=BATCH,
    vocabulary=vocabulary,
  )
  opened, used = time.perf_counter(), time.process_time()
  source = data.TrainingSource(config, 0, NamedSharding(Mesh(jax.devices(), 'data'), PartitionSpec('data')))
  batch = jax.block_until_ready(next(source))
  first, used = time.perf_counter(), time.process_time() - used
  for _ in range(20):  # what was prefetched, and the pipeline's tuning
    next(source)
  began, busy, batches, tokens = time.perf_counter(), time.process_time(), 0, 0
  while time.perf_counter() - began < seconds:
    batch = next(source)
    batches += 1
    tokens += int((batch['encoder_segment_ids'] > 0).sum()) if batches <= 20 else 0
  rate, busy = batches * BATCH / (time.perf_counter() - began), time.process_time() - busy
  source.close()
  filled = tokens / (min(batches, 20) * BATCH * LENGTHS['inputs'])
  return {
    'rows_per_second': rate,
    'rows_per_processor_second': batches * BATCH / busy,
    'opening': first - opened,
    'opening_processor': used,
    'from_start': first - BEGAN,
    'filled': filled,
  }


def run(way, flags):
  """Returns what a process of its own measures."""
  with tempfile.TemporaryDirectory() as folder:
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'}
    environment['PYTHONPATH'] = os.pathsep.join([str(ROOT), str(ROOT / 'benchmarks')])
    if way == 'first run':
      environment['SWITCH_JAX_CACHE'] = folder
    command = [sys.executable, __file__, '--way', way, f'--seconds={flags.seconds}', f'--vocabulary={flags.vocabulary}']
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  if result.returncode:
    raise SystemExit(f'{way} failed:\n{result.stderr}')
  return json.loads(result.stdout.splitlines()[-1])


def main():
  """Measures all ways, one after the other."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--way', choices=WAYS, help='measure this one in this process')
  parser.add_argument('--vocabulary', default='bytes', help='bytes, or a SentencePiece model')
  parser.add_argument('--seconds', type=float, default=8, help='how long rows are counted')
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--cores', type=int, default=2)
  parser.add_argument('--json', help='also write the numbers into this file')
  flags = parser.parse_args()
  if flags.way:
    print(json.dumps(measure(flags.way, flags.vocabulary, flags.seconds)))
    return
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.cores])
  run('cached', argparse.Namespace(seconds=0.1, vocabulary=flags.vocabulary))  # fills the cache if it is empty
  found = {}
  print(f'vocabulary: {flags.vocabulary}; load before: {os.getloadavg()[0]:.1f}; medians of {flags.repeats}')
  print(
    '| way | rows a second | per processor second | first row, s | its processor time | from the start | filled, % |'
  )
  print('| --- | --- | --- | --- | --- | --- | --- |')
  for way in WAYS:
    found[way] = [run(way, flags) for _ in range(flags.repeats)]
    medians = (statistics.median(x[key] for x in found[way]) for key in found[way][0])
    rate, busy, opening, used, start, filled = medians
    print(
      f'| {way} | {rate:,.0f} | {busy:,.0f} | {opening:.1f} | {used:.1f} | {start:.1f} | {100 * filled:.1f} |',
      flush=True,
    )
  if flags.json:
    pathlib.Path(flags.json).write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
  main()
