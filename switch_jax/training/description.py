"""What a run will be, in words: parameters, mesh, shardings, routing groups and effective expert capacity."""

import dataclasses
import re

import jax

from switch_jax import data, kernels
from switch_jax.config import ModelConfig, RunConfig
from switch_jax.distillation.student import Distillation
from switch_jax.model import abstract_parameters, parameter_count
from switch_jax.model.placement import make_layout
from switch_jax.model.routing import expert_capacity
from switch_jax.parallel import Layout
from switch_jax.training.opening import with_inherited_vocabulary
from switch_jax.training.state import plan_state


@dataclasses.dataclass(frozen=True)
class StackRouting:
  """How the tokens of one stack are routed.

  Attributes:
    stack: `encoder` or `decoder`.
    groups: routing groups of the global batch.
    group_tokens: tokens of a group, padding included.
    train_capacity, eval_capacity: slots of each expert in a group; None drops nothing.
    num_experts: experts of each layer.
  """

  stack: str
  groups: int
  group_tokens: int
  train_capacity: int | None
  eval_capacity: int | None
  num_experts: int

  def slots_per_token(self, capacity: int | None) -> float | None:
    """Returns expert rows computed per token: the *effective* capacity factor."""
    return None if capacity is None else capacity * self.num_experts / self.group_tokens


def stack_routing(run: RunConfig, layout: Layout) -> list[StackRouting]:
  """Returns the routing of each stack that has Switch layers; a group is what shares the slots of an expert."""
  moe, found = run.model.moe, []
  if moe is None:
    return found
  rows = moe.sequences_per_group or run.data.batch_size // layout.num_token_shards // run.num_microbatches
  if moe.dispatch == 'ragged':
    rows *= layout.num_expert_shards
  for stack, length in run.row_lengths.items():
    if run.model.switch_layers(stack) or run.model.switch_attention_layers(stack):
      tokens = rows * length
      capacities = [expert_capacity(moe, tokens, deterministic) for deterministic in (False, True)]
      found.append(StackRouting(stack, run.data.batch_size // rows, tokens, *capacities, moe.num_experts))
  return found


def active_parameters(run: RunConfig, layout: Layout) -> int:
  """Returns the parameters that one token meets: everything but the experts it is not sent to."""
  moe, total = run.model.moe, 0
  used = moe.experts_per_token if moe else 1
  for path, x in jax.tree_util.tree_leaves_with_path(abstract_parameters(run.model, layout)):
    count = parameter_count({'': x})
    is_expert = any(key.key == 'expert' for key in path)
    total += count * used // moe.num_experts if is_expert else count
  return total


def _routing_lines(run: RunConfig, layout: Layout) -> list[str]:
  lines = []
  factor = run.model.moe and layout.num_expert_shards > 1 and run.model.moe.ragged_buffer_factor
  unbounded = f'with a buffer of {factor:g} rows a token' if factor else 'drop-free'
  for routing in stack_routing(run, layout):
    parts = []
    for mode, capacity, without in (
      ('training', routing.train_capacity, unbounded),
      ('evaluation', routing.eval_capacity, 'drop-free'),
    ):
      slots = routing.slots_per_token(capacity)
      parts.append(f'{mode} {without}' if slots is None else f'{mode} capacity {capacity} = {slots:.2f} slots a token')
    lines.append(
      f'{routing.stack:<9}{routing.groups} groups of {routing.group_tokens} tokens, {routing.num_experts} experts: '
      + ', '.join(parts)
    )
  return lines or ['none: a dense model']


def _layers_in_words(model: ModelConfig) -> str:
  if not model.is_decoder_only:
    return f'{model.num_encoder_layers} + {model.num_decoder_layers} layers'
  kind = 'prefix LM' if model.prefix_lm else 'decoder-only'
  return f'{kind}, {model.num_decoder_layers} layers, {model.positions} positions'


def _data_lines(run: RunConfig) -> list[str]:
  """Returns what is in the user's own files, which are read and checked as a run does."""
  if run.data.tables is None and run.data.text_files is None:
    return []
  said = data.look_at(with_inherited_vocabulary(run).data)
  return [f'text        {said}'] if said else []


def describe(run: RunConfig) -> str:
  """Returns what `--dry_run` prints. Builds the abstract state, so whatever does not divide is refused here,
  and reads the user's own files.

  Raises:
    ConfigError: as in training.
  """
  distillation = Distillation.open(run)
  layout = make_layout(run, others=distillation.models)
  state = plan_state(run, layout).abstract
  total = parameter_count(state.params)
  optimizer_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state))
  axes = ', '.join(f'{name}={size}' for name, size in layout.mesh.shape.items())
  model = run.model
  lines = [
    f'parameters  {total:,} ({active_parameters(run, layout):,} active per token), {total * 4 / 2**20:.1f} MiB; '
    f'optimizer {optimizer_bytes / 2**20:.1f} MiB',
    f'model       {_layers_in_words(model)}, emb_dim {model.emb_dim}, '
    f'{model.num_heads} heads of {model.head_dim}, mlp_dim {model.mlp_dim}, {model.activation_dtype}',
    f'mesh        {axes} over {layout.mesh.size} {layout.mesh.devices.flat[0].platform} devices',
    f'kernels     {kernels.describe(layout)}',
    f'batch       {run.data.batch_size} rows of {run.data.feature_lengths}, '
    f'{run.data.batch_size // layout.num_token_shards} rows a shard'
    + (f', in {run.num_microbatches} microbatches' if run.num_microbatches > 1 else ''),
    f'task        {run.data.mixture_or_task_name}, {run.train_steps} steps, seed {run.random_seed}',
    *_data_lines(run),
    f'model_dir   {run.model_dir}',
    'routing',
    *(f'  {line}' for line in _routing_lines(run, layout)),
    *distillation.describe(),
    'parameters and how they lie on the mesh',
  ]
  rows: dict[tuple[str, ...], list[int]] = {}
  for path, x in jax.tree_util.tree_leaves_with_path(state.params):
    name = '/'.join(key.key for key in path)
    layer = re.search(r'layers_(\d+)', name)
    key = (re.sub(r'layers_\d+', 'layers_*', name), str(x.shape), str(tuple(x.sharding.spec)))
    rows.setdefault(key, []).append(int(layer.group(1)) if layer else -1)
  width = max(len(name) for name, _, _ in rows)
  for (name, shape, spec), layers in rows.items():
    which = '' if layers == [-1] else f'  layers {", ".join(map(str, sorted(layers)))}'
    lines.append(f'  {name:<{width}}  {shape:<18} {spec}{which}')
  return '\n'.join(lines)
