"""Where a run's model lies: its mesh, and whether parameters, batch and routing groups divide over it."""

import math
from collections.abc import Sequence

import jax

from switch_jax.config import ConfigError, ModelConfig, RunConfig
from switch_jax.model.parameters import parameter_widths
from switch_jax.parallel import Layout, make_mesh


def make_layout(
  run: RunConfig, devices: Sequence[jax.Device] | None = None, others: Sequence[ModelConfig] = ()
) -> Layout:
  """Returns the layout of a run after checking that parameters and batch divide over it.

  Args:
    run: gives mesh and rules, and what has to divide.
    devices: all devices by default.
    others: models that lie on the same mesh, as the teacher of a distillation.

  Raises:
    ConfigError: the mesh, the parameters, the batch or the routing groups do not divide.
  """
  models = [run.model, *others]
  experts = [model.moe.num_experts for model in models if model.moe]
  widths: dict[str, tuple[int, ...]] = {}
  for model in models:
    for name, sizes in parameter_widths(model).items():
      widths[name] = widths.get(name, ()) + sizes
  # What divides all numbers of experts is what divides their greatest common divisor.
  mesh = make_mesh(run.mesh, math.gcd(*experts) if experts else None, devices, widths)
  layout = Layout.of(run.mesh, mesh)
  check_batch(run, layout)
  return layout


def check_batch(run: RunConfig, layout: Layout) -> None:
  """Raises a `ConfigError` if rows, routing groups or the exchanged width do not divide over the mesh."""
  shards, batch, model = layout.num_token_shards, run.data.batch_size, layout.size('model')
  if batch % shards:
    raise ConfigError(
      f'DataConfig.batch_size is {batch}, which the {shards} (data, expert) shards of the mesh do not divide; '
      f'use a multiple of {shards}.'
    )
  parts, rows = run.num_microbatches, batch // shards
  group = run.model.moe.sequences_per_group if run.model.moe else None
  if rows % (parts * (group or 1)) and parts > 1:
    whole = f' in whole groups of {group} rows' if group else ''
    raise ConfigError(
      f'RunConfig.num_microbatches is {parts}, but each of the {shards} (data, expert) shards holds {rows} rows, which '
      f'must divide into {parts} parts{whole}, so that no row moves; use a divisor of {rows // (group or 1)}.'
    )
  pieces = layout.shards('length')
  for stack, length in run.row_lengths.items():
    if length % pieces:
      raise ConfigError(
        f'DataConfig.feature_lengths is {run.data.feature_lengths!r}; rows of the {stack} have {length} positions, '
        f"which the layout rule of 'length' splits over {pieces} devices; use a multiple of {pieces}, or another rule."
      )
  if group and (batch // shards) % group:
    raise ConfigError(
      f'MoeConfig.sequences_per_group is {group}, but each of the {shards} (data, expert) shards holds '
      f'{batch // shards} rows; a group never crosses a shard, so it must divide {batch // shards}.'
    )
  if run.model.moe is None:
    return
  # Switch layers split these over the model axis whatever the layout's rules are (model/experts.py).
  hidden = 'mlp_dim' if run.model.moe.expert_mlp_dim is None else 'expert_mlp_dim'
  for owner, name in (('ModelConfig', 'emb_dim'), ('ModelConfig' if hidden == 'mlp_dim' else 'MoeConfig', hidden)):
    width = getattr(run.model if owner == 'ModelConfig' else run.model.moe, name)
    if width % model:
      raise ConfigError(
        f'{owner}.{name} is {width}, which the model axis of {model} devices does not divide; use a multiple of '
        f'{model}, or another MeshConfig.model.'
      )
