"""The table of plans: the paper's models compiled for TPU pods that are not there.

  python benchmarks/plans.py --out=plans/ [--only=switch_base,switch_c]

Every row is one `python -m switch_jax.main --run_mode=plan`, one after the other, each in its own process; the numbers
are kept as `plans/<row>.json`, and rows that are there already are not compiled again. All of it takes about half an
hour and 10 GiB of memory on two cores.

Beside switch_base on 32 cores stands what T5X and flaxformer's step compiles to, same sizes, same compiler: 4.59e12
FLOPs a core, 3.7 GiB of temporaries, 48 all-to-alls, 36 all-gathers, 78 all-reduces, 134 s to compile.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Row:
  """One plan: a model, a topology, the sequences of a batch, and what else is bound."""

  model: str
  topology: str
  batch: int
  layout: str | None = None
  bindings: tuple[str, ...] = ()

  def command(self, json_file: pathlib.Path) -> list[str]:
    """Returns the command that makes the row."""
    files = [f'gin/models/{self.model}.gin', 'gin/runs/pretrain.gin']
    if self.layout:
      files.append(f'gin/layouts/{self.layout}.gin')
    return [
      *(sys.executable, '-m', 'switch_jax.main', '--run_mode=plan', f'--topology={self.topology}'),
      *(f'--json={json_file}', f'--gin.BATCH_SIZE={self.batch}'),
      *(f'--gin_file={file}' for file in files),
      *(f'--gin.{binding}' for binding in self.bindings),
    ]


# One slot is the least an expert can have for a source core; the released Switch-C has 2 (8 and 36 slots a token at one
# sequence a core).
_ONE_SLOT = ('config.MoeConfig.min_expert_capacity=1',)
_SHARED_SLOTS = ("config.MoeConfig.dispatch='ragged'",)

ROWS = {
  'switch_base': Row('switch_base', 'v3:4x4', 256),
  'switch_large': Row('switch_large', 'v3:4x4', 256),
  'switch_xxl': Row('switch_xxl', 'v3:32x32', 2048, 'expert_model_data', ('config.MeshConfig.model=16',)),
  'switch_c': Row('switch_c', 'v3:32x32', 2048, bindings=_ONE_SLOT),
  'switch_c_ragged': Row('switch_c', 'v3:32x32', 2048, bindings=_SHARED_SLOTS),
  'switch_c_ragged_v5p': Row('switch_c', 'v5p:8x16x16', 2048, bindings=_SHARED_SLOTS),
  'switch_c_4': Row('switch_c', 'v3:32x32', 8192, bindings=_ONE_SLOT),
}

COLUMNS = (
  'model', 'TPU', 'mesh', 'batch', 'parameters', 'state', 'temporaries', 'HBM needed', 'FLOPs a core', 'of useful',
  'empty slots', 'all-to-all', 'all-gather', 'reduce', 'slots a token', 'compiled in', 'step by cycles', 'links',
  'unpriced',
)  # fmt: skip


def cells(row: Row, plan: dict) -> list[str]:
  """Returns one row of the table."""
  gib = lambda size: '-' if size is None else f'{size / 2**30:.2f} GiB'  # noqa: E731
  mesh = ' x '.join(str(size) for size in plan['mesh'].values())
  slots = ', '.join('drop-free' if n is None else f'{n:.2f}' for n in plan['slots_per_token'].values())
  start = [row.model, f'{plan["topology"]}, {plan["cores"]}', mesh, str(row.batch), f'{plan["parameters"] / 1e9:.1f}B']
  start.append(gib(plan['parameter_bytes_per_core'] + plan['optimizer_bytes_per_core']))
  start.append(gib(plan['temporary_bytes_per_core']))
  start.append(f'{gib(plan["hbm_bytes_per_core"])} of {gib(plan["hbm_bytes_available"])}')
  if not plan['fits']:
    return [*start, '-', '-', '-', '-', '-', '-', slots, f'{plan["compile_seconds"]:.0f} s', 'does not fit', '-', '-']
  sent, estimate = plan['collectives'], plan['estimate']
  count = lambda *kinds: sum(sent.get(kind, {'count': 0})['count'] for kind in kinds)  # noqa: E731
  size = lambda *kinds: gib(sum(sent.get(kind, {'bytes': 0})['bytes'] for kind in kinds))  # noqa: E731
  kinds = (('all-to-all',), ('all-gather',), ('all-reduce', 'reduce-scatter'))
  return [
    *start,
    f'{plan["flops_per_core"]:.3g}',
    f'{plan["flops_per_core"] / plan["model_flops_per_core"]:.2f}',
    f'{plan["empty_slot_flops_per_core"] / plan["model_flops_per_core"]:.2f}',
    *(f'{count(*kind)} ({size(*kind)})' for kind in kinds),
    slots,
    f'{plan["compile_seconds"]:.0f} s',
    f'{1e3 * estimate["compute_seconds"]:.0f} ms',
    f'{1e3 * estimate["exchange_seconds"]:.1f} ms',
    ', '.join(f'{count} {opcode}' for opcode, count in estimate['unpriced'].items()),
  ]


def main() -> None:
  """Makes the plans that are missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', default='plans', metavar='DIR', help='where the numbers are kept (default: plans)')
  parser.add_argument('--only', default=','.join(ROWS), metavar='ROWS', help=f'some of {",".join(ROWS)}')
  arguments = parser.parse_args()
  out = pathlib.Path(arguments.out).resolve()
  out.mkdir(parents=True, exist_ok=True)
  lines = [COLUMNS, ['---'] * len(COLUMNS)]
  for name in arguments.only.split(','):
    file = out / f'{name}.json'
    if not file.exists():
      subprocess.run(ROWS[name].command(file), cwd=ROOT, check=True)
    lines.append(cells(ROWS[name], json.loads(file.read_text())))
  for line in lines:
    print(f'| {" | ".join(line)} |')


if __name__ == '__main__':
  main()
