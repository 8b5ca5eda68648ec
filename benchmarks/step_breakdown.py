"""Where the time of a TPU's training step goes, by the compiler's own cycles.

  python benchmarks/step_breakdown.py --topology=v5p:2x4x4 --model=switch_base
  python benchmarks/step_breakdown.py --topology=v3:4x4 --model=switch_base --kernels="{'attention': 'plain'}"

Compiles the step with two numbers of layers (2 + 2 and 4 + 4 of a model with experts in every second) and multiplies
out what the second has more. No TPU is needed, only libtpu; a compilation takes minutes. Operations without a price are
counted beside the table; collectives are priced by their bytes over the links of a chip.
"""

import argparse
import collections
import dataclasses
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from switch_jax import gin_files, launch
from switch_jax.distillation.student import Distillation
from switch_jax.model.placement import make_layout
from switch_jax.model.transformer import block_length
from switch_jax.plan import ahead_of_time, flops
from switch_jax.plan.estimate import estimate, extrapolate
from switch_jax.plan.program import Instruction, instructions

# The first pattern that is found in the name of an operation gives its part.
PARTS = (
  ('attention', re.compile(r'attention/(?!.*_project|out/|.*router/|.*expert)')),
  ('projections', re.compile(r'attention.*(_project|/out/)')),
  ('router', re.compile(r'/router/')),
  ('experts', re.compile(r'mlp/shard_map/.*(ecd,edf|dot_general.*expert|expert_product)')),
  ('dispatch', re.compile(r'mlp/shard_map/')),
  ('dense feed-forward', re.compile(r'mlp/(wi|wo|wi_\d)')),
  ('norms', re.compile(r'norm')),
  ('logits and embedding', re.compile(r'logits|token_embedder|relpos_bias')),
  ('optimizer, loss and metrics', re.compile(r'.')),
)


def part_of(one: Instruction) -> str:
  """Returns the row of the table that an instruction belongs to."""
  if not one.op_name:
    return 'copies and layouts' if one.opcode in ('copy', 'transpose', 'reshape') else 'optimizer, loss and metrics'
  return next(name for name, pattern in PARTS if pattern.search(one.op_name))


def main() -> None:
  """Compiles both depths and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--topology', default='v5p:2x4x4')
  parser.add_argument('--model', default='switch_base', help='a file of gin/models')
  parser.add_argument('--batch', type=int, default=256)
  parser.add_argument('--kernels', default='{}', help='forms of operations, as MeshConfig.kernels takes them')
  arguments = parser.parse_args()
  launch.compile_for_absent_tpus()
  bindings = ['MODEL_DIR=none', 'MIXTURE_OR_TASK_NAME=none', 'TRAIN_STEPS=1', f'BATCH_SIZE={arguments.batch}']
  bindings.append(f'config.MeshConfig.kernels={arguments.kernels}')
  run, _ = gin_files.load_run([f'gin/models/{arguments.model}.gin', 'gin/runs/pretrain.gin'], bindings)
  devices = ahead_of_time.topology_devices(arguments.topology, run.mesh.num_slices)
  unit = {stack: block_length(run.model, stack) for stack in ('encoder', 'decoder')}
  found, tables = [], []
  for turns in (1, 2):
    layers = {f'num_{stack}_layers': turns * unit[stack] for stack in unit}
    shallow = dataclasses.replace(run, model=dataclasses.replace(run.model, scan_layers=False, **layers))
    layout = make_layout(shallow, devices, Distillation.open(shallow).models)
    compiled, seconds = ahead_of_time.compile_step(shallow, layout)
    print(f'compiled {layers} in {seconds:.0f} s', flush=True)
    program = list(instructions(compiled.as_text()))
    found.append(estimate(program, devices[0].device_kind, len(devices)))
    table = collections.Counter()
    for one in program:
      alone = estimate([one], devices[0].device_kind, len(devices))
      table[part_of(one)] += alone.compute_seconds
    table['collectives, over the links'] = found[-1].exchange_seconds
    tables.append(table)
  more = run.model.num_encoder_layers / unit['encoder'] - 1
  whole = extrapolate(*found, more)
  rows = {name: tables[0][name] + more * (tables[1][name] - tables[0][name]) for name in tables[0] | tables[1]}
  for name, seconds in sorted(rows.items(), key=lambda row: -row[1]):
    print(f'| {name} | {1e3 * seconds:.1f} ms | {seconds / whole.seconds:.1%} |')
  useful = flops.model_flops(run, layout) / len(devices)
  print(
    f'{1e3 * whole.compute_seconds:.1f} ms on {len(devices)} {devices[0].device_kind} '
    f'({1e3 * whole.kernel_seconds:.1f} of it kernels), {whole.share_of_peak(useful):.1%} of peak; '
    f'without a price: {whole.unpriced}'
  )


if __name__ == '__main__':
  main()
