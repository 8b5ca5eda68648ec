"""Seconds of one full training step, by number of experts, on the devices at hand.

  python benchmarks/step_time.py --experts 16 64 --steps 8 --json step_time.json

The model: d_model 256, 8 heads of 32, d_ff 1024, ReLU, 4 + 4 layers with every second feed-forward network sparse,
vocabulary 384, batch 16 x (256 inputs, 64 targets), Adafactor. `--experts 0` is the FLOP-matched dense T5. The models
of one call take turns, step by step, so that a machine that slows down slows them all; medians are printed.
`benchmarks/compare_step_time.py` runs this beside Hugging Face's implementation.
"""

import argparse
import json
import statistics
import sys
import time

import jax
import numpy as np

from switch_jax import config, launch
from switch_jax.parallel import Layout, make_mesh
from switch_jax.training.state import init_state, plan_state
from switch_jax.training.step import make_train_step

BATCH, INPUTS, TARGETS, VOCABULARY = 16, 256, 64, 384


def make_run(num_experts: int, arguments: argparse.Namespace) -> config.RunConfig:
  """Returns the configuration of one model; 0 experts is the dense T5."""
  moe = None
  if num_experts:
    moe = config.MoeConfig(
      num_experts=num_experts, train_capacity_factor=arguments.capacity_factor, exploration=arguments.exploration
    )
  model = config.ModelConfig(
    vocab_size=VOCABULARY,
    emb_dim=256,
    num_heads=8,
    head_dim=32,
    mlp_dim=1024,
    num_encoder_layers=4,
    num_decoder_layers=4,
    activation_dtype=arguments.dtype,
    moe=moe,
  )
  lengths = {'inputs': INPUTS, 'targets': TARGETS}
  data = config.DataConfig(mixture_or_task_name='random tokens', feature_lengths=lengths, batch_size=BATCH)
  return config.RunConfig(model_dir='unused', model=model, data=data, train_steps=1, random_seed=0)


def make_batch(layout: Layout) -> dict[str, jax.Array]:
  """Returns random tokens without padding."""
  random = np.random.default_rng(0)
  inputs = random.integers(3, VOCABULARY, (BATCH, INPUTS), dtype=np.int32)
  targets = random.integers(3, VOCABULARY, (BATCH, TARGETS), dtype=np.int32)
  batch = {
    'encoder_input_tokens': inputs,
    'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    'decoder_target_tokens': targets,
    'decoder_loss_weights': np.ones_like(targets),
    'encoder_segment_ids': np.ones_like(inputs),
    'decoder_segment_ids': np.ones_like(targets),
  }
  return jax.device_put(batch, layout.batch_sharding())


class Trainer:
  """One model, ready to make steps."""

  def __init__(self, num_experts: int, arguments: argparse.Namespace):
    run = make_run(num_experts, arguments)
    layout = Layout(make_mesh(run.mesh, num_experts or None))
    plan = plan_state(run, layout)
    self.state, self.batch = init_state(run, layout, plan), make_batch(layout)
    self.step = make_train_step(run, layout, plan)
    self.seconds: list[float] = []

  def run(self, count: bool = True) -> None:
    """Makes one step and waits for it."""
    began = time.perf_counter()
    self.state, metrics = self.step(self.state, self.batch)
    jax.block_until_ready((self.state, metrics))
    if count:
      self.seconds.append(time.perf_counter() - began)


def main() -> None:
  """Times the models and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--experts', type=int, nargs='+', default=[16, 64])
  parser.add_argument('--steps', type=int, default=8)
  parser.add_argument('--warmup', type=int, default=6, help='steps before; memory grows in the first few')
  parser.add_argument('--capacity_factor', type=float, default=1.25)
  parser.add_argument('--exploration', default='input_jitter')
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--json')
  parser.add_argument(
    '--malloc_of_main', action=argparse.BooleanOptionalAction, default=True,
    help='huge pages (unless GLIBC_TUNABLES is set) and kept memory, as switch_jax.main has them',
  )  # fmt: skip
  parser.add_argument(
    '--serve', action='store_true', help='make a step for each line on standard input, print its seconds'
  )
  arguments = parser.parse_args()
  if arguments.malloc_of_main:
    launch.restart_with_huge_pages()
    launch.keep_freed_memory()

  trainers = {num_experts: Trainer(num_experts, arguments) for num_experts in arguments.experts}
  for i in range(arguments.warmup + (0 if arguments.serve else arguments.steps)):
    for trainer in trainers.values():
      trainer.run(count=i >= arguments.warmup)

  if arguments.serve:
    print('ready', flush=True)
    for _ in sys.stdin:
      for trainer in trainers.values():
        trainer.run()
        print(trainer.seconds[-1], flush=True)
    return
  results = []
  print(f'{"model":<16}{"experts":>8}{"median s":>10}{"min s":>10}{"max s":>10}')
  for num_experts, trainer in trainers.items():
    name = 'switch_jax' if num_experts else 'switch_jax dense'
    median = statistics.median(trainer.seconds)
    print(f'{name:<16}{num_experts:>8}{median:>10.3f}{min(trainer.seconds):>10.3f}{max(trainer.seconds):>10.3f}')
    results.append({'name': name, 'experts': num_experts, 'median_step_s': median, 'step_s': trainer.seconds})
  if arguments.json:
    with open(arguments.json, 'w') as file:
      json.dump(results, file, indent=2)


if __name__ == '__main__':
  main()
