"""What a teacher costs: a step of the student by itself, the teacher's forward pass, and the distilled step.

  python benchmarks/distillation_step_time.py --experts 16 --steps 12

Model, batch and optimizer are those of `step_time.py`: a dense student, and a teacher with experts in every second
layer, drop-free. The three take turns, so that a machine that slows down slows them all. The ratio is the distilled
step / (1.5 x the student's step + the teacher's forward pass) of neighbouring measurements, and may be 1 at most;
medians are printed. The teacher's checkpoint is written to a temporary folder first.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time

import jax
import numpy as np
import step_time

from switch_jax import config, launch
from switch_jax.checkpoints import CheckpointStore
from switch_jax.distillation.student import Distillation
from switch_jax.parallel import Layout
from switch_jax.training.state import init_state, plan_state
from switch_jax.training.step import make_train_step


def save_teacher(run: config.RunConfig, layout: Layout, folder: str) -> None:
  """Writes a checkpoint of step 1 with a model's initial parameters."""
  state = dataclasses.replace(
    init_state(run, layout, plan_state(run, layout)), step=jax.device_put(np.int32(1), layout.replicated())
  )
  store = CheckpointStore(folder, config.CheckpointConfig())
  store.save(1, state, {'model': run.model.to_json(), 'identity': run.identity()}, lambda _: None)
  store.close()


class Student:
  """A dense student with or without its teacher, ready to make steps."""

  def __init__(self, run: config.RunConfig, layout: Layout):
    self.distillation = Distillation.open(run)
    lessons = self.distillation.lessons(layout, {}, 0)
    self.teacher = lessons.arguments
    plan = plan_state(run, layout)
    self.state, self.batch = init_state(run, layout, plan), step_time.make_batch(layout)
    self.step = make_train_step(run, layout, plan, lessons=lessons)

  def run(self) -> None:
    """Makes one step and waits for it."""
    self.state, metrics = self.step(self.state, self.batch, *self.teacher)
    jax.block_until_ready((self.state, metrics))


def seconds(function) -> float:
  """Returns how long a call takes."""
  began = time.perf_counter()
  function()
  return time.perf_counter() - began


def main() -> None:
  """Times the three and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--experts', type=int, nargs='+', default=[16])
  parser.add_argument('--steps', type=int, default=12)
  parser.add_argument('--warmup', type=int, default=2)
  parser.add_argument('--teacher_dtype', default='float32', help='a CPU has no bfloat16 units; on a TPU use bfloat16')
  arguments = parser.parse_args()
  arguments.capacity_factor, arguments.exploration, arguments.dtype = 1.25, 'input_jitter', 'float32'
  launch.restart_with_huge_pages()
  launch.keep_freed_memory()
  layout = Layout.single_device()
  print(f'{"experts":>8}{"student s":>11}{"teacher s":>11}{"distilled s":>13}{"ratio":>8}{"min":>8}{"max":>8}')
  for experts in arguments.experts:
    with tempfile.TemporaryDirectory() as folder:
      save_teacher(step_time.make_run(experts, arguments), layout, folder)
      plain = step_time.make_run(0, arguments)
      made = config.DistillationConfig(teacher_path=folder, teacher_dtype=arguments.teacher_dtype)
      alone, distilled = Student(plain, layout), Student(dataclasses.replace(plain, distillation=made), layout)
    teacher, (params,) = distilled.distillation.teacher, distilled.teacher
    forward = jax.jit(lambda params, batch, teacher=teacher: teacher.logits(params, batch, layout))
    parts = (
      alone.run,
      lambda f=forward, p=params, b=alone.batch: jax.block_until_ready(f(p, b)),
      distilled.run,
    )  # fmt: skip
    times = [[seconds(part) for part in parts] for _ in range(arguments.warmup + arguments.steps)][arguments.warmup :]
    ratios = [both / (1.5 * student + teacher_pass) for student, teacher_pass, both in times]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    print(
      f'{experts:>8}{medians[0]:>11.3f}{medians[1]:>11.3f}{medians[2]:>13.3f}{statistics.median(ratios):>8.2f}'
      f'{min(ratios):>8.2f}{max(ratios):>8.2f}',
      flush=True,
    )


if __name__ == '__main__':
  main()
