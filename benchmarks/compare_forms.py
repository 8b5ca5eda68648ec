"""Whether a machine's forms of a step train as the plain ones: losses on emulated devices, TPU kernels interpreted.

  python benchmarks/compare_forms.py
  python benchmarks/compare_forms.py --forms=cpu
  python benchmarks/compare_forms.py --model=switch_tiny --steps=20 --devices=8

Both train on the same two batches of made-up tokens, dropout, expert dropout and jitter on, in float32. Prints the
losses side by side and the largest difference; exit status 1 above 1e-5.
"""

import argparse
import dataclasses
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from switch_jax.config.mesh import KERNELS

PLAIN = {operation: next(iter(forms)) for operation, forms in KERNELS.items()}
FORMS = {'tpu': PLAIN | {'attention': 'fused', 'positions': 'products', 'update': 'sharded'}, 'cpu': {}}
NOISE = (
  'config.ModelConfig.dropout_rate=0.1',
  'config.MoeConfig.expert_dropout_rate=0.4',
  'config.MoeConfig.jitter_noise=0.01',
  "config.ModelConfig.activation_dtype='float32'",
  'LEARNING_RATE=3',  # twenty steps learn something; with more, a rounding may turn a token to another expert
)


def losses(run, kernels: dict[str, str], steps: int) -> list[float]:
  """Trains a run with these forms; returns the loss of every step."""
  import jax  # after the number of devices is set
  import numpy as np

  from switch_jax.model.placement import make_layout
  from switch_jax.training.state import init_state, plan_state
  from switch_jax.training.step import make_train_step

  run = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, kernels=kernels))
  layout = make_layout(run)
  plan = plan_state(run, layout)
  state, step, found = init_state(run, layout, plan), make_train_step(run, layout, plan), []
  for number in range(steps):
    rows, random = {}, np.random.default_rng(number % 2)
    for stack, feature in (('encoder', 'inputs'), ('decoder', 'targets')):
      shape = (run.data.batch_size, run.data.feature_lengths[feature])
      tokens = random.integers(1, run.model.vocab_size, shape, dtype=np.int32)
      tokens[0, shape[1] // 2 :] = 0
      rows |= {f'{stack}_input_tokens': tokens, f'{stack}_segment_ids': (tokens > 0).astype(np.int32)}
    rows['decoder_target_tokens'] = np.roll(rows['decoder_input_tokens'], -1, axis=1)
    rows['decoder_loss_weights'] = rows['decoder_segment_ids']
    state, metrics = step(state, jax.device_put(rows, layout.batch_sharding()))
    found.append(float(metrics['loss']))
  return found


def main() -> int:
  """Trains with both; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--model', default='switch_tiny', help='a file of gin/models')
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--forms', choices=FORMS, default='tpu', help='of which machine')
  parser.add_argument('--devices', type=int, help='8, or one for the forms of a CPU')
  parser.add_argument('--length', type=int, default=64, help='of inputs; targets have half of it')
  arguments = parser.parse_args()
  arguments.devices = arguments.devices or (1 if arguments.forms == 'cpu' else 8)
  os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={arguments.devices}'
  os.environ['JAX_PLATFORMS'] = 'cpu'
  from switch_jax import gin_files
  from switch_jax.kernels import fused_attention
  from switch_jax.parallel import update_sharding

  fused_attention.INTERPRET, update_sharding.SMALLEST_SPLIT = True, 256
  lengths = {'inputs': arguments.length, 'targets': arguments.length // 2}
  bindings = ['MODEL_DIR=none', 'MIXTURE_OR_TASK_NAME=none', f'TRAIN_STEPS={arguments.steps}', *NOISE]
  bindings += [f'BATCH_SIZE={max(4, 2 * arguments.devices)}', f'TASK_FEATURE_LENGTHS={lengths}']
  run, _ = gin_files.load_run([f'gin/models/{arguments.model}.gin', 'gin/runs/pretrain.gin'], bindings)
  plain, own = (losses(run, kernels, arguments.steps) for kernels in (PLAIN, FORMS[arguments.forms]))
  for step, (a, b) in enumerate(zip(plain, own, strict=True), 1):
    print(f'step {step:>3}  plain {a:.7f}  {arguments.forms} {b:.7f}  {b - a:+.1e}')
  largest = max(abs(a - b) for a, b in zip(plain, own, strict=True))
  print(f'{arguments.model}, {arguments.steps} steps on {arguments.devices} devices: largest difference {largest:.1e}')
  return int(largest > 1e-5)


if __name__ == '__main__':
  sys.exit(main())
