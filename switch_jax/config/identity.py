"""What a MODEL_DIR belongs to: the settings in which a run that goes on must be the one that began."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from switch_jax.config.model import ModelConfig
from switch_jax.config.moe import MoeConfig

if TYPE_CHECKING:
  from switch_jax.config.run import RunConfig

# Fields of `MoeConfig` that older versions did not have; left at their defaults they change nothing.
_NEWER_IN_MOE = (
  'ragged_buffer_factor', 'num_selected_experts', 'router_scores', 'gate_scale', 'bias_update_rate',
  'num_shared_experts', 'shared_expert_mlp_dim', 'extra_mlp',
)  # fmt: skip


def identity_of(run: RunConfig) -> dict[str, Any]:
  """Returns `RunConfig.identity`: what older versions recorded of a run that is like theirs, and what is new."""
  data = run.data.to_json()
  # What the text and the vocabulary are is compared by their digests, wherever they lie.
  texts = ('text_files', 'undecodable', 'tables', 'vocabulary')
  for name in ('task_module', 'eval_split', 'prefetch', 'cached_tasks_dir', *texts):
    data.pop(name)
  for name in ('languages', 'sampling_exponent'):  # checkpoints of versions without languages do not have them
    if data[name] is None:
      data.pop(name)
  if run.data.loss_on_targets_only:  # nor this
    data.pop('loss_on_targets_only')
  model = run.model.to_json()
  for name in ('remat_policy', 'scan_unroll'):
    model.pop(name)
  for name in ('prefix_lm', 'positions', 'rotary_base'):  # nor these; a base counts where something is turned by it
    if model[name] == getattr(ModelConfig, name) or (name == 'rotary_base' and run.model.positions != 'rotary'):
      model.pop(name)
  if run.model.gradient_dtype == 'float32':  # checkpoints of older versions do not have it
    model.pop('gradient_dtype')
  if run.model.moe:  # as older versions recorded what was left at its default and what had no effect
    for name in _NEWER_IN_MOE:
      if model['moe'][name] == getattr(MoeConfig, name):
        model['moe'].pop(name)
    model['moe']['exploration'] = run.model.moe.exploration or 'input_jitter'
    if not any(run.model.switch_attention_layers(stack) for stack in ('encoder', 'decoder')):
      model['moe']['attention_expert'] = 'linear'
  parts: dict[str, Any] = {'model': model, 'optimizer': run.optimizer.to_json(), 'loss': run.loss.to_json()}
  if run.optimizer.factor_experts == 'always':  # older versions do not have it and did so
    parts['optimizer'].pop('factor_experts')
  for name, unset in (('decay_begin', None), ('final_fraction', 0.0)):  # nor these, which change nothing then
    if parts['optimizer'][name] == unset:
      parts['optimizer'].pop(name)
  parts |= {'data': data, 'random_seed': run.random_seed}
  if run.distillation:  # where the teacher and its logits lie is compared when they are opened
    parts['distillation'] = run.distillation.to_json()
    for name in ('teacher_path', 'teacher_logits', 'top_k'):
      parts['distillation'].pop(name)
  return flatten(parts)


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns a nested dictionary as one level of dotted names."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat.update(flatten(value, f'{prefix}{name}.'))
    else:
      flat[f'{prefix}{name}'] = value
  return flat
