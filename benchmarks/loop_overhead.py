"""What the training loop (data, metrics, checkpoints every 50 steps) adds to the bare jitted step.

  PYTHONPATH=$PWD python benchmarks/loop_overhead.py --experts 16 64

The sizes of `benchmarks/step_time.py`, on the docstrings task. The loop is `switch_jax.training.train` itself, with the
times at which it dispatches steps written down; the bare step is the same compiled function on one batch, run
afterwards. Printed: median of the bare step, mean of a loop's step, what the loop adds, how many steps the save of step
50 held training up, and the share of time that the loop waited for input.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import statistics
import tempfile
import time

import jax
from step_time import make_run

from switch_jax import config, launch, training
from switch_jax.folders.model_dir import ModelDir
from switch_jax.training import opening

_SKIPPED = 4  # steps at the beginning, with compilation


class Recorder:
  """Stands for the step: passes calls on, and writes down when they come."""

  def __init__(self, step):
    self.step, self.began, self.kept = step, [], None

  def __call__(self, state, batch):
    """Makes a step."""
    self.began.append(time.perf_counter())
    state, metrics = self.step(state, batch)
    self.kept = batch
    return state, metrics


def bare_seconds(recorder: Recorder, state, count: int) -> tuple[list[float], object]:
  """Returns the seconds of single steps on one batch, and the state after them."""
  seconds = []
  for _ in range(count):
    began = time.perf_counter()
    state, metrics = recorder.step(state, recorder.kept)
    jax.block_until_ready((state, metrics))
    seconds.append(time.perf_counter() - began)
  return seconds[1:], state


def measure(experts: int, arguments: argparse.Namespace, folder: pathlib.Path) -> dict:
  """Runs the loop and the bare step of one model."""
  run = make_run(experts, arguments)
  data = dataclasses.replace(
    run.data, mixture_or_task_name='docstrings_span_corruption', task_module='switch_jax.tasks.docstrings'
  )
  run = dataclasses.replace(
    run,
    data=data,
    model_dir=str(folder),
    train_steps=arguments.steps,
    eval_period=None,
    eval_steps=1,
    checkpoint=config.CheckpointConfig(period=50),
  )
  recorders, make_train_step = [], opening.make_train_step

  def record(*args):
    recorders.append(Recorder(make_train_step(*args)))
    return recorders[0]

  opening.make_train_step = record
  try:
    state = training.train(run).state
  finally:
    opening.make_train_step = make_train_step
  (recorder,) = recorders
  bare, _ = bare_seconds(recorder, state, arguments.bare_steps)
  gaps = [b - a for a, b in zip(recorder.began[_SKIPPED:], recorder.began[_SKIPPED + 1 :], strict=False)]
  # The gap after a dispatched step ends with the next one; CPU dispatch is asynchronous, so only their mean is a step.
  lines = ModelDir(folder).read_train()
  step, mean = statistics.median(bare), statistics.mean(gaps)
  return {
    'experts': experts,
    'bare_step_s': step,
    'loop_step_s': mean,
    'added': mean / step - 1,
    # A step is dispatched when the one before the last has ended, so two are under way when a save begins, and it waits
    # for both. What it holds up is the rest.
    'save_held_up_steps': gaps[50 - _SKIPPED - 1] / mean - 2,
    'input_wait_fraction': lines[-1].get('input_wait_fraction'),
  }


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--experts', type=int, nargs='+', default=[16, 64])
  parser.add_argument('--steps', type=int, default=60)
  parser.add_argument('--bare_steps', type=int, default=20)
  parser.set_defaults(capacity_factor=1.25, exploration='input_jitter', dtype='float32')
  arguments = parser.parse_args()
  launch.quiet_logging(False)
  launch.use_compilation_cache(None)
  for experts in arguments.experts:
    folder = pathlib.Path(tempfile.mkdtemp(prefix='loop_overhead_'))
    try:
      print(json.dumps(measure(experts, arguments, folder)), flush=True)
    finally:
      shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
  launch.restart_with_huge_pages()
  launch.keep_freed_memory()
  main()
