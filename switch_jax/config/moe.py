"""The Switch layers of a model: experts, routers, capacities and their losses."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from switch_jax.config.validation import Checked

LayerPattern = int | tuple[int, ...]

# Which routers have an option.
_OF_ROUTERS = {
  'num_selected_experts': ('topk',), 'gate_scale': ('topk',), 'router_scores': ('top1', 'topk'),
  'bias_update_rate': ('top1', 'topk'),
}  # fmt: skip
# Routers that look at all tokens of a group before they decide, later tokens included.
_SEES_THE_FUTURE = 'it lets a token depend on later ones, so it is for encoders only'


def layer_indices(pattern: LayerPattern, num_layers: int) -> tuple[int, ...]:
  """Returns the layers that a pattern selects: every k-th one (k-1, 2k-1, ... as flaxformer counts), or a list."""
  if isinstance(pattern, int):
    return tuple(range(pattern - 1, num_layers, pattern))
  return pattern


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeConfig(Checked):
  """The Switch layers of a model (paper sections 2 and 3, appendices A and B).

  Attributes:
    num_experts: experts in each Switch layer.
    router: `top1` is the Switch layer; `top2` the MoE baseline of Table 1; `topk` any number of experts a token, as in
      models since (Mixtral, OLMoE, DeepSeek); `no_token_left_behind` Appendix B; `expert_choice` lets experts choose
      tokens (encoder only).
    num_selected_experts: the k of `topk`.
    router_scores: what gates are made of: `softmax` over the experts, or the `sigmoid` of each logit (DeepSeek-V3,
      Llama 4; for `top1` and `topk`), whose shares of a token's sum are the P_i of the balance loss.
    encoder_layers, decoder_layers: which layers have experts in place of the feed-forward network: an integer k for
      every k-th layer, or the explicit indices. `()` is none.
    encoder_attention_layers, decoder_attention_layers: the same for Switch attention (Appendix A).
    train_capacity_factor, eval_capacity_factor: capacity = factor * group tokens / experts, of `topk` k times that
      (`top2` has the paper's, without a factor for its two choices); None is drop-free.
    expert_capacity: an absolute capacity in tokens per expert and group, in place of both factors.
    min_expert_capacity: lower bound of the capacity, in tokens.
    capacity_rounding: `floor` as the paper's code, `round` as T5X.
    sequences_per_group: whole rows of the batch that are routed together; None is one group per (data, expert) shard
      (of a `ragged` dispatch: of all shards that exchange tokens).
    padding_takes_slots: let padding compete for slots and count in the balance loss (Hugging Face, flaxformer).
    slot_priority: `position` (first come, first served) or `probability` (batch-prioritised, encoder only).
    exploration: how the router explores in training (Table 11): noise on its input for every router but `top2`, which
      has none, `sample` for `top1`. None is `input_jitter`, and `argmax` for `top2` and `topk`.
    jitter_noise: the eps of `input_jitter`: the router's input is multiplied by U(1 - eps, 1 + eps).
    router_input_dropout_rate: the rate of `input_dropout`.
    sample_temperature: the softmax temperature of `sample`.
    num_choices: how many choices `no_token_left_behind` tries for each token.
    second_policy_train, second_policy_eval: which second experts of `top2` are used: `all`, `none`, those whose
      gate exceeds `second_threshold`, or `random`, kept with probability min(1, gate / second_threshold). Evaluation
      draws `random` from a fixed seed, so its numbers repeat.
    second_threshold: what the gate of a second expert must exceed, or is divided by, under these policies.
    normalize_gates: divide the gates of a token of `top2` or `topk` by their sum (Mixtral, DeepSeek-V3); False takes
      the scores as they are (OLMoE).
    gate_scale: factor of the gates of `topk` (DeepSeek-V3's `routed_scaling_factor`).
    bias_update_rate: balance without a loss (Wang et al. 2024; DeepSeek-V3 with 0.001): each expert of a `top1` or
      `topk` router has a bias that is added to its score for the choice, not for the gate. A training step raises it by
      this rate where the expert got fewer tokens than the mean of its layer, and lowers it where it got more. None has
      no biases.
    aux_loss_factor: the alpha of equation 4; 0.0 with `bias_update_rate`.
    router_z_loss_factor: weight of the squared log-partition function of the router; 0 is the paper.
    router_loss_aggregate: add the router losses of the layers (`sum`, the paper) or average them (`mean`, T5X).
    expert_mlp_dim: hidden width of an expert; None is the model's `mlp_dim`. A fraction of it, with as many times the
      experts and choices, makes fine-grained experts at equal FLOPs (Dai et al. 2024).
    num_shared_experts: experts beside the routed ones of a feed-forward Switch layer that every token goes through,
      without a gate (Dai et al. 2024): one dense network of their width together, `shared_expert`.
    shared_expert_mlp_dim: hidden width of each; None is that of a routed expert.
    extra_mlp: one more dense feed-forward network of the model's `mlp_dim`, with norm and residual of its own, after
      every feed-forward Switch layer (ST-MoE, Zoph et al. 2022).
    expert_dropout_rate: dropout inside the experts (section 2.4: 0.4 in fine-tuning).
    router_dtype: `float32` is selective precision; `bfloat16` only reproduces Table 2.
    dispatch: `slots` moves tokens by integer index; `einsum` by one-hot products, the reference. Both give every group
      slots of its own. `ragged` gives the slots of an expert to all shards that exchange tokens, as equation 3 has it
      for the whole batch: their tokens are one group, in the order of the shards, and an expert takes the first of
      them. For `top1` and `topk`; far fewer slots where shards are many and have few tokens each (Switch-C).
    ragged_buffer_factor: rows that the experts of a shard have together in training with `ragged` and no capacity, as a
      multiple of a shard's tokens times their choices, which is what they get on average; choices beyond are dropped.
      None drops nothing: every shard is given the tokens of all.
    drop_free_block_size: rows to which the run of each expert is padded when no token is dropped; None picks a power
      of two from 8 to 128 near the mean number of tokens per expert. The kernel for TPUs (`grouped`) has up to 512, and
      takes what is set here if it is a multiple of 8.
    attention_expert: what a Switch attention expert is: a feed-forward `mlp` with two output matrices, one for the
      query and one for the shared key and value, as in the paper's code; or `linear`, these two matrices alone.
  """

  num_experts: int
  router: Literal['top1', 'top2', 'topk', 'no_token_left_behind', 'expert_choice'] = 'top1'
  num_selected_experts: int = 2
  router_scores: Literal['softmax', 'sigmoid'] = 'softmax'
  encoder_layers: LayerPattern = 2
  decoder_layers: LayerPattern = 2
  encoder_attention_layers: LayerPattern = ()
  decoder_attention_layers: LayerPattern = ()
  train_capacity_factor: float | None = 1.25
  eval_capacity_factor: float | None = 2.0
  expert_capacity: int | None = None
  min_expert_capacity: int = 1
  capacity_rounding: Literal['floor', 'round'] = 'floor'
  sequences_per_group: int | None = None
  padding_takes_slots: bool = False
  slot_priority: Literal['position', 'probability'] = 'position'
  exploration: Literal['argmax', 'sample', 'input_dropout', 'input_jitter'] | None = None
  jitter_noise: float = 1e-2
  router_input_dropout_rate: float = 0.1
  sample_temperature: float = 1.0
  num_choices: int = 4
  second_policy_train: Literal['all', 'none', 'threshold', 'random'] = 'random'
  second_policy_eval: Literal['all', 'none', 'threshold', 'random'] = 'random'
  second_threshold: float = 0.2
  normalize_gates: bool = True
  gate_scale: float = 1.0
  bias_update_rate: float | None = None
  aux_loss_factor: float = 1e-2
  router_z_loss_factor: float = 0.0
  router_loss_aggregate: Literal['sum', 'mean'] = 'sum'
  expert_mlp_dim: int | None = None
  num_shared_experts: int = 0
  shared_expert_mlp_dim: int | None = None
  extra_mlp: bool = False
  expert_dropout_rate: float = 0.0
  router_dtype: Literal['float32', 'bfloat16'] = 'float32'
  dispatch: Literal['slots', 'einsum', 'ragged'] = 'slots'
  ragged_buffer_factor: float | None = None
  drop_free_block_size: int | None = None
  attention_expert: Literal['linear', 'mlp'] = 'mlp'

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require_at_least(1, 'num_experts', 'num_choices', 'sequences_per_group', 'expert_mlp_dim')
    self.require_at_least(1, 'drop_free_block_size', 'min_expert_capacity', 'expert_capacity')
    self.require_at_least(1, 'num_selected_experts', 'shared_expert_mlp_dim')
    self.require_at_least(0, 'aux_loss_factor', 'router_z_loss_factor', 'num_shared_experts')
    self.require_positive('train_capacity_factor', 'eval_capacity_factor', 'sample_temperature', 'second_threshold')
    self.require_positive('gate_scale', 'bias_update_rate')
    self.require_rate('expert_dropout_rate', 'router_input_dropout_rate', 'jitter_noise')
    for name in ('encoder_layers', 'decoder_layers', 'encoder_attention_layers', 'decoder_attention_layers'):
      pattern = getattr(self, name)
      if isinstance(pattern, int):
        self.require(pattern >= 1, name, 'every k-th layer needs k of at least 1; for no layer write ().')
      else:
        rule = 'layer indices must be at least 0 and rise strictly, for example (1, 3, 5).'
        self.require(all(i >= 0 for i in pattern) and list(pattern) == sorted(set(pattern)), name, rule)
    if self.router == 'top2':
      rule = 'the router top2 does not explore (its second_policy_train does); use "argmax", or leave it None.'
      self.require(self.exploration in (None, 'argmax'), 'exploration', rule)
      self.require(self.num_experts >= 2, 'num_experts', 'top-2 routing needs at least 2; use router="top1".')
    elif self.router != 'top1':
      rule = f'the router {self.router} does not sample; use "argmax", "input_dropout" or "input_jitter".'
      self.require(self.exploration != 'sample', 'exploration', rule)
    self._check_options_of_topk()
    if self.router == 'no_token_left_behind':
      rule = f'there are only {self.num_experts} experts to choose from; use at most that many choices.'
      self.require(self.num_choices <= self.num_experts, 'num_choices', rule)
    if self.router == 'expert_choice':
      rule = 'experts that choose tokens need a finite capacity; give a capacity factor (1.25 for example).'
      if self.expert_capacity is None:
        self.require(self.train_capacity_factor is not None, 'train_capacity_factor', rule)
        self.require(self.eval_capacity_factor is not None, 'eval_capacity_factor', rule)
    if self.dispatch == 'ragged':
      other = 'or set dispatch="slots".'
      rule = (
        'the dispatch ragged numbers one queue of each expert over all shards, by top1 or topk alone; use "top1" or '
        f'"topk", {other}'
      )
      self.require(self.router in ('top1', 'topk'), 'router', rule)
      rule = f'the dispatch ragged takes tokens in their order over all shards; use "position", {other}'
      self.require(self.slot_priority == 'position', 'slot_priority', rule)
      rule = f'the dispatch ragged has one group of all shards that exchange tokens; leave it None, {other}'
      self.require(self.sequences_per_group is None, 'sequences_per_group', rule)
    if self.ragged_buffer_factor is not None:
      name, other = 'ragged_buffer_factor', 'or leave it None, which drops nothing.'
      rule = f'a shard gets a row for each of its tokens on average; use at least 1.0, {other}'
      self.require(self.ragged_buffer_factor >= 1, name, rule)
      self.require(self.dispatch == 'ragged', name, f'only the dispatch ragged has it; set dispatch="ragged", {other}')
      rule = f'experts with a capacity have no buffer; set train_capacity_factor and expert_capacity to None, {other}'
      self.require(self.train_capacity_factor is None and self.expert_capacity is None, name, rule)
      rule = f'expert dropout is drawn by numbers of tokens, which a buffer lacks; set expert_dropout_rate=0.0, {other}'
      self.require(self.expert_dropout_rate == 0, name, rule)
    in_decoder = self.decoder_layers != () or self.decoder_attention_layers != ()
    if in_decoder:
      remedy = 'set decoder_layers=() and decoder_attention_layers=(), or choose another.'
      self.require(self.router != 'expert_choice', 'router', f'{_SEES_THE_FUTURE}: {remedy}')
      self.require(self.slot_priority != 'probability', 'slot_priority', f'{_SEES_THE_FUTURE}: {remedy}')

  def _check_options_of_topk(self) -> None:
    """Raises a `ConfigError` for options of `topk` that contradict each other, or that another router lacks."""
    if self.router == 'topk':
      rule = f'there are only {self.num_experts} experts to choose from; select at most that many.'
      self.require(self.num_selected_experts <= self.num_experts, 'num_selected_experts', rule)
    for name, routers in _OF_ROUTERS.items():
      unset = getattr(type(self), name)
      rule = f'it is for {" and ".join(routers)}, and the router is {self.router}; use "topk", or leave it {unset!r}.'
      self.require(getattr(self, name) == unset or self.router in routers, name, rule)
    if self.bias_update_rate is not None:
      rule = 'biases balance the load in place of the loss; set aux_loss_factor=0.0, or bias_update_rate=None.'
      self.require(self.aux_loss_factor == 0, 'aux_loss_factor', rule)
      rule = (
        'with bias_update_rate the choice maximises score and bias; use "argmax", "input_dropout" or "input_jitter".'
      )
      self.require(self.exploration != 'sample', 'exploration', rule)
    in_layers = self.encoder_layers != () or self.decoder_layers != ()
    for name in ('num_shared_experts', 'extra_mlp'):
      unset = getattr(type(self), name)
      rule = f'it belongs to feed-forward Switch layers, and there are none; leave it {unset!r}.'
      self.require(in_layers or getattr(self, name) == unset, name, rule)
    rule = 'there are no shared experts that it could be the width of; set num_shared_experts, or leave it None.'
    self.require(self.num_shared_experts > 0 or self.shared_expert_mlp_dim is None, 'shared_expert_mlp_dim', rule)

  @property
  def explores(self) -> str:
    """Returns how the router explores in training: `exploration`, or what None of it means."""
    return self.exploration or ('argmax' if self.router in ('top2', 'topk') else 'input_jitter')

  @property
  def experts_per_token(self) -> int:
    """Returns to how many experts a token goes at most; of experts that choose, to how many on average."""
    return {'top2': 2, 'topk': self.num_selected_experts}.get(self.router, 1)

  def shared_width(self, mlp_dim: int) -> int:
    """Returns the hidden width of all shared experts together in a model of this `mlp_dim`, 0 for none."""
    return self.num_shared_experts * (self.shared_expert_mlp_dim or self.expert_mlp_dim or mlp_dim)

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> Self:
    """As `Checked.from_json`; older versions recorded an exploration of `top2` and had none."""
    if fields.get('router') == 'top2' and fields.get('exploration') in ('input_jitter', 'input_dropout', 'sample'):
      fields = {**fields, 'exploration': None}
    return super().from_json(fields)
