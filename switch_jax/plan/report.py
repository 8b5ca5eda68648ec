"""A plan in words and as JSON."""

import dataclasses
import json
import os
import pathlib

from switch_jax.config import ConfigError, RunConfig
from switch_jax.plan.ahead_of_time import Plan

_GIB = 2**30


def check_outputs(*files: str | None) -> None:
  """Checks that files can be written, before minutes are spent on what goes into them.

  Raises:
    ConfigError: a folder does not exist or cannot be written.
  """
  for file in files:
    if file is None:
      continue
    path = pathlib.Path(file)
    if path.is_dir():
      raise ConfigError(f'{file} is a folder; give a file.')
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
      raise ConfigError(f'{file} cannot be written: {path.absolute().parent} is no folder that can be written to.')


def write_json(plan: Plan, path: str) -> None:
  """Writes the fields of a plan as one JSON object; None is null."""
  pathlib.Path(path).write_text(json.dumps(dataclasses.asdict(plan), indent=2) + '\n')


def _gib(size: float) -> str:
  return f'{size / _GIB:.2f} GiB' if size >= _GIB / 100 else f'{size / 2**20:.1f} MiB'


def _memory_lines(plan: Plan) -> list[str]:
  state = f'parameters {_gib(plan.parameter_bytes_per_core)}, optimizer {_gib(plan.optimizer_bytes_per_core)}'
  spare = plan.hbm_bytes_available - plan.hbm_bytes_per_core
  verdict = f'fits, {_gib(spare)} to spare' if plan.fits else f'does not fit, {_gib(-spare)} too much'
  if plan.temporary_bytes_per_core is not None:
    state += f', temporaries {_gib(plan.temporary_bytes_per_core)}'
  return [
    f'a core      {state}',
    f'memory      {_gib(plan.hbm_bytes_per_core)} of the {_gib(plan.hbm_bytes_available)} that the compiler grants a '
    f'program on {plan.device_kind}: {verdict}',
  ]


def _work_lines(plan: Plan) -> list[str]:
  counted = f"{plan.model_flops_per_core:.3g} counted in the model's products with parameters"
  seconds = f'compiled    in {plan.compile_seconds:.0f} s'
  if plan.flops_per_core is None:
    return [f'FLOPs       {counted}', seconds]
  ratio = plan.flops_per_core / plan.model_flops_per_core
  more = {"attention's scores": plan.score_flops_per_core, 'empty slots': plan.empty_slot_flops_per_core}
  added = [f'{name} {size / plan.model_flops_per_core:.2f}' for name, size in more.items() if size]
  return [
    f'FLOPs       {plan.flops_per_core:.3g} a core and step, {ratio:.2f} times the {counted} '
    f'(of this ratio {", ".join(added)})',
    *_time_lines(plan),
    seconds,
  ]


def _time_lines(plan: Plan) -> list[str]:
  found = plan.estimate
  if found is None:
    return [f'time        cannot be told: no figures of {plan.device_kind} are known here']
  share = found.share_of_peak(plan.model_flops_per_core)
  unpriced = ', '.join(f'{count} {opcode}' for opcode, count in found.unpriced.items())
  kernels = f' ({1e3 * found.kernel_seconds:.3g} ms of it kernels, by their products)' if found.kernel_seconds else ''
  return [
    f"time        {1e3 * found.compute_seconds:.3g} ms a step by the compiler's cycles{kernels}, {share:.0%} of the "
    'peak for the products counted',
    f'            and {1e3 * found.exchange_seconds:.3g} ms if the links of a chip carried the collectives evenly and '
    'nothing overlapped',
    f'            without {unpriced or "nothing"}: operations that the compiler has no price for',
  ]


def _routing_line(plan: Plan) -> str:
  parts = []
  for stack, slots in plan.slots_per_token.items():
    capacity = plan.capacity[stack]
    parts.append(
      f'{stack} drop-free'
      if slots is None
      else f'{stack} capacity {capacity} an expert and group = {slots:.2f} slots a token'
    )
  return ', '.join(parts) or 'none: a dense model'


def _knobs(plan: Plan, run: RunConfig) -> list[str]:
  """Returns the settings that would help most, each with what it is now; those that help most first."""
  model, mesh = run.model, run.mesh
  state = plan.parameter_bytes_per_core * 2 + plan.optimizer_bytes_per_core  # gradients are as large as parameters
  rows = run.data.batch_size // (plan.mesh['data'] * plan.mesh['expert'])
  activations, weights = [], []
  if model.remat_policy != 'full':
    better = 'full' if model.remat_policy == 'minimal' else "minimal' or 'full"
    scan = '' if model.scan_layers else ', with config.ModelConfig.scan_layers=True'
    activations.append(f"config.ModelConfig.remat_policy='{better}' (now {model.remat_policy!r}){scan}")
  if hasattr(run, 'num_microbatches') and rows > 1:
    activations.append(f'NUM_MICROBATCHES of at most {rows} (now {run.num_microbatches})')
  if rows > 1:
    activations.append(f'a smaller BATCH_SIZE (now {run.data.batch_size}, {rows} rows a shard)')
  weights.append(f'config.MeshConfig.model={2 * plan.mesh["model"]} (now {plan.mesh["model"]}): half of every width')
  if plan.mesh['data'] * plan.mesh['expert'] > 1 and 'embed' not in mesh.rules:
    weights.append('gin/layouts/fully_sharded.gin: matrices outside the experts split over all cores')
  weights.append(f'more cores (now {plan.cores})')
  mostly_weights = state > plan.hbm_bytes_per_core - state
  return weights + activations if mostly_weights else activations + weights


def describe(plan: Plan, run: RunConfig) -> str:
  """Returns a plan as the table that `--run_mode=plan` prints."""
  axes = ', '.join(f'{name}={size}' for name, size in plan.mesh.items())
  lengths = ' and '.join(f'{length} {feature}' for feature, length in run.data.feature_lengths.items())
  lines = [
    f'topology    {plan.topology}: {plan.cores} {plan.device_kind} cores, mesh {axes}',
    f'batch       {run.data.batch_size} rows of {lengths}',
    f'parameters  {plan.parameters:,} ({plan.active_parameters:,} active per token)',
    *_memory_lines(plan),
    f'checkpoint  {_gib(plan.checkpoint_bytes)}, of which a host writes {_gib(plan.checkpoint_bytes_per_host)} '
    f'({plan.hosts} host{"s" if plan.hosts != 1 else ""})',
    *_work_lines(plan),
    f'routing     {_routing_line(plan)}',
  ]
  if plan.collectives is not None:
    sent = [f'{n["count"]} {kind} ({_gib(n["bytes"])})' for kind, n in plan.collectives.items()]
    lines.append(f'collectives {", ".join(sent) or "none"} a step, bytes on each core')
  if not plan.fits:
    lines.append('what would help most:')
    lines += [f'  {knob}' for knob in _knobs(plan, run)]
  return '\n'.join(lines)
