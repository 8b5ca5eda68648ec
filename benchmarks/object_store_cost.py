"""What metrics and checkpoints on an object store cost the training thread, at some latency of each request.

  PYTHONPATH=$PWD python benchmarks/object_store_cost.py

Starts a server of Google Cloud Storage's interface on loopback (`tests/object_store`; needs `unshare -m`) and trains
the quickstart's model to it, a line of metrics every 10 steps. Seconds that the training thread spends in writing
metrics, in saving and in waiting for a save are summed, and printed as shares of steps of the given length: beside the
quickstart's own steps of some milliseconds a store's latency says nothing about a large model.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def child(arguments: argparse.Namespace) -> None:
  """Trains, in a process for which `gs://bucket` is the server, and prints the seconds as JSON."""
  from switch_jax import main
  from switch_jax.checkpoints import CheckpointStore
  from switch_jax.monitoring.metric_files import MetricFiles
  from switch_jax.training import loop

  seconds, steps = {'metrics': 0.0, 'checkpoints': 0.0}, []

  def timed(owner, name, kind):
    inner = getattr(owner, name)

    def call(self, *rest, **options):
      if threading.current_thread() is not threading.main_thread() or not steps or steps[-1] >= arguments.steps:
        return inner(self, *rest, **options)
      began = time.perf_counter()
      try:
        return inner(self, *rest, **options)
      finally:
        seconds[kind] += time.perf_counter() - began

    setattr(owner, name, call)

  for name in ('write', 'write_pictures', 'write_expert_tokens', 'flush'):
    timed(MetricFiles, name, 'metrics')
  timed(CheckpointStore, 'save', 'checkpoints')
  opened = loop.open_run

  def open_slowly(*rest):
    found = opened(*rest)
    step = found.train_step

    def slow(*batch):
      steps.append(len(steps) + 1)
      time.sleep(arguments.step_seconds)
      return step(*batch)

    object.__setattr__(found, 'train_step', slow)
    return found

  loop.open_run = open_slowly
  files = ['--gin_file=gin/examples/quickstart.gin', '--gin.MODEL_DIR=gs://bucket/run', '--gin.BATCH_SIZE=8']
  periods = {
    'LOG_PERIOD': 10,
    'TRAIN_STEPS': arguments.steps,
    'CHECKPOINT_PERIOD': arguments.checkpoint_period,
    'EVAL_PERIOD': arguments.steps,
    'EVAL_STEPS': 1,
  }
  status = main.main([*files, *(f'--gin.{name}={value}' for name, value in periods.items())])
  print(json.dumps({'status': status, 'seconds': seconds}))


def main() -> None:
  """Starts the server and the run, and prints the shares."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--latency', type=float, default=0.04, help='seconds before each answer of the store')
  parser.add_argument('--steps', type=int, default=400)
  parser.add_argument('--checkpoint_period', type=int, default=200)
  parser.add_argument('--step_seconds', type=float, default=0.3, help='that a step takes at least')
  parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.child:
    child(arguments)
    return
  from tests.object_store import bucket as buckets

  if reason := buckets.reason_to_skip():
    raise SystemExit(f'cannot be measured here: {reason}')
  with tempfile.TemporaryDirectory() as folder, buckets.open_bucket(pathlib.Path(folder)) as bucket:
    bucket.store.latency = arguments.latency
    flags = [f'--{name}={getattr(arguments, name)}' for name in ('steps', 'checkpoint_period', 'step_seconds')]
    status, output = bucket.run([__file__, '--child', *flags], timeout=3600, cwd=ROOT)
    if status or '"status": 0' not in output:
      raise SystemExit(output)
    counts = dict(bucket.store.counts)
  found = json.loads(output.splitlines()[-1])
  total = arguments.steps * arguments.step_seconds
  for kind, seconds in found['seconds'].items():
    print(f'{kind}: {seconds:.2f} s of {total:.0f} s of steps, {100 * seconds / total:.2f} %')
  print(f'requests: {counts}')


if __name__ == '__main__':
  main()
