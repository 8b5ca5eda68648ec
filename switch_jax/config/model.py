"""What is computed: the T5 encoder-decoder, or a decoder alone, and its Switch layers."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from switch_jax.config.validation import Checked, ConfigError

LayerPattern = int | tuple[int, ...]

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
    router: `top1` is the Switch layer; `top2` the MoE baseline of Table 1; `no_token_left_behind` Appendix B;
      `expert_choice` lets experts choose tokens (encoder only).
    encoder_layers, decoder_layers: which layers have experts in place of the feed-forward network: an integer k for
      every k-th layer, or the explicit indices. `()` is none.
    encoder_attention_layers, decoder_attention_layers: the same for Switch attention (Appendix A).
    train_capacity_factor, eval_capacity_factor: capacity = factor * group tokens / experts; None is drop-free.
    expert_capacity: an absolute capacity in tokens per expert and group, in place of both factors.
    min_expert_capacity: lower bound of the capacity, in tokens.
    capacity_rounding: `floor` as the paper's code, `round` as T5X.
    sequences_per_group: whole rows of the batch that are routed together; None is one group per (data, expert) shard
      (of a `ragged` dispatch: of all shards that exchange tokens).
    padding_takes_slots: let padding compete for slots and count in the balance loss (Hugging Face, flaxformer).
    slot_priority: `position` (first come, first served) or `probability` (batch-prioritised, encoder only).
    exploration: how the router explores in training (Table 11): noise on its input for every router but `top2`, which
      has none, `sample` for `top1`. None is `input_jitter`, and `argmax` for `top2`.
    jitter_noise: the eps of `input_jitter`: the router's input is multiplied by U(1 - eps, 1 + eps).
    router_input_dropout_rate: the rate of `input_dropout`.
    sample_temperature: the softmax temperature of `sample`.
    num_choices: how many choices `no_token_left_behind` tries for each token.
    second_policy_train, second_policy_eval: which second experts of `top2` are used: `all`, `none`, those whose
      gate exceeds `second_threshold`, or `random`, kept with probability min(1, gate / second_threshold). Evaluation
      draws `random` from a fixed seed, so its numbers repeat.
    second_threshold: what the gate of a second expert must exceed, or is divided by, under these policies.
    normalize_gates: divide the two gates of `top2` by their sum.
    aux_loss_factor: the alpha of equation 4.
    router_z_loss_factor: weight of the squared log-partition function of the router; 0 is the paper.
    router_loss_aggregate: add the router losses of the layers (`sum`, the paper) or average them (`mean`, T5X).
    expert_mlp_dim: hidden width of an expert; None is the model's `mlp_dim`.
    expert_dropout_rate: dropout inside the experts (section 2.4: 0.4 in fine-tuning).
    router_dtype: `float32` is selective precision; `bfloat16` only reproduces Table 2.
    dispatch: `slots` moves tokens by integer index; `einsum` by one-hot products, the reference. Both give every group
      slots of its own. `ragged` gives the slots of an expert to all shards that exchange tokens, as equation 3 has it
      for the whole batch: their tokens are one group, in the order of the shards, and an expert takes the first of
      them. For `top1` alone; far fewer slots where shards are many and have few tokens each (Switch-C).
    ragged_buffer_factor: rows that the experts of a shard have together in training with `ragged` and no capacity, as a
      multiple of a shard's tokens, which is what they get on average; tokens beyond are dropped. None drops nothing:
      every shard is given the tokens of all.
    drop_free_block_size: rows to which the run of each expert is padded when no token is dropped; None picks a power
      of two from 8 to 128 near the mean number of tokens per expert. The kernel for TPUs (`grouped`) has up to 512, and
      takes what is set here if it is a multiple of 8.
    attention_expert: what a Switch attention expert is: a feed-forward `mlp` with two output matrices, one for the
      query and one for the shared key and value, as in the paper's code; or `linear`, these two matrices alone.
  """

  num_experts: int
  router: Literal['top1', 'top2', 'no_token_left_behind', 'expert_choice'] = 'top1'
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
  aux_loss_factor: float = 1e-2
  router_z_loss_factor: float = 0.0
  router_loss_aggregate: Literal['sum', 'mean'] = 'sum'
  expert_mlp_dim: int | None = None
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
    self.require_at_least(0, 'aux_loss_factor', 'router_z_loss_factor')
    self.require_positive('train_capacity_factor', 'eval_capacity_factor', 'sample_temperature', 'second_threshold')
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
      rule = f'the dispatch ragged numbers one queue of each expert over all shards, by top1 alone; use "top1", {other}'
      self.require(self.router == 'top1', 'router', rule)
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

  @property
  def explores(self) -> str:
    """Returns how the router explores in training: `exploration`, or what None of it means."""
    return self.exploration or ('argmax' if self.router == 'top2' else 'input_jitter')

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> Self:
    """As `Checked.from_json`; older versions recorded an exploration of `top2` and had none."""
    if fields.get('router') == 'top2' and fields.get('exploration') in ('input_jitter', 'input_dropout', 'sample'):
      fields = {**fields, 'exploration': None}
    return super().from_json(fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
  """A T5 encoder-decoder or a decoder-only model, dense or with Switch layers. Names are T5X's.

  Attributes:
    vocab_size: rows of the embedding table; at least the vocabulary's size, often padded (32,128 for T5).
    emb_dim, num_heads, head_dim, mlp_dim: widths; `d_model`, heads, `d_kv` and `d_ff` of the paper's Table 9.
    num_encoder_layers, num_decoder_layers: layers of the two stacks. Without encoder layers it is a decoder-only model:
      no cross-attention either; inputs and targets follow each other in one row.
    prefix_lm: tokens that the batch marks as a prefix (its inputs) see each other in both directions; decoder-only.
    positions: what self-attention knows of them: `relative_bias` is T5's, a number for each head and range of
      distances; `rotary` turns queries and keys (Su et al. 2021; halves paired as in Llama).
    rotary_base: wavelengths are from 2 pi to 2 pi times this, in tokens.
    mlp_activations: `('relu',)`, or two of them for a gated layer: `('gelu', 'linear')` is GEGLU.
    logits_via_embedding: tie the output projection to the embedding (then scaled by emb_dim ** -0.5).
    dropout_rate: dropout outside the experts.
    activation_dtype: dtype of activations and of the residual stream; parameters are always float32.
    gradient_dtype: in which the gradients of dense kernels are made and summed over the devices where activations are
      bfloat16; those of experts and router always are float32.
    init: `paper`: truncated normal of variance `init_scale` / fan_in for every matrix, router included; `released`:
      the distributions of the released checkpoints' configuration.
    init_scale: the s of section 2.4 (0.1; 1.0 is the usual initialisation of Transformers).
    scan_layers: compile one block of layers and scan over the stack.
    scan_unroll: blocks in one turn of that scan; the same numbers, a longer compilation.
    remat_policy: what is recomputed in the backward pass: `none`; `full` keeps only the blocks' inputs; `minimal`
      keeps the results of matrix products too.
    mask_padding_queries: a padding token attends to nothing, which averages all keys (T5X); False lets it attend to
      the real tokens (Hugging Face). It matters only where padding competes for slots.
    relpos_num_buckets, relpos_max_distance: relative-position buckets, an even number, and the distance from which on
      all keys share the last one.
    layer_norm_epsilon: added to the mean square that a layer norm divides by.
    moe: the Switch layers; None is a dense T5.
  """

  vocab_size: int
  emb_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  prefix_lm: bool = False
  positions: Literal['relative_bias', 'rotary'] = 'relative_bias'
  rotary_base: float = 10_000.0
  mlp_activations: tuple[Literal['relu', 'gelu', 'silu', 'linear'], ...] = ('relu',)
  logits_via_embedding: bool = True
  dropout_rate: float = 0.0
  activation_dtype: Literal['float32', 'bfloat16'] = 'float32'
  gradient_dtype: Literal['float32', 'bfloat16'] = 'float32'
  init: Literal['paper', 'released'] = 'paper'
  init_scale: float = 0.1
  relpos_num_buckets: int = 32
  relpos_max_distance: int = 128
  layer_norm_epsilon: float = 1e-6
  scan_layers: bool = False
  scan_unroll: int = 1
  remat_policy: Literal['none', 'minimal', 'full'] = 'none'
  mask_padding_queries: bool = True
  moe: MoeConfig | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require_at_least(1, 'vocab_size', 'emb_dim', 'num_heads', 'head_dim', 'mlp_dim')
    self.require_at_least(1, 'num_decoder_layers', 'scan_unroll')
    self.require_at_least(0, 'num_encoder_layers')
    rule = 'a prefix is for models without an encoder; set num_encoder_layers=0, or leave it False.'
    self.require(not self.prefix_lm or self.is_decoder_only, 'prefix_lm', rule)
    rule = f'rotary positions pair the two halves of a head, and head_dim is {self.head_dim}; use an even one.'
    self.require(self.positions != 'rotary' or self.head_dim % 2 == 0, 'positions', rule)
    self.require(self.rotary_base > 1, 'rotary_base', 'it must be greater than 1; 10,000 is usual.')
    rule = 'it must be an even number of at least 4: half of the buckets of an encoder are for each direction.'
    self.require(self.relpos_num_buckets >= 4 and self.relpos_num_buckets % 2 == 0, 'relpos_num_buckets', rule)
    exact = self.relpos_num_buckets // 2
    rule = (
      f'of {self.relpos_num_buckets} buckets {exact} are for exact distances; it must exceed {exact} (up to 2**31 - 1).'
    )
    self.require(exact < self.relpos_max_distance < 2**31, 'relpos_max_distance', rule)
    self.require_positive('init_scale', 'layer_norm_epsilon')
    self.require_rate('dropout_rate')
    self.require(1 <= len(self.mlp_activations) <= 2, 'mlp_activations', 'give one, or two for a gated layer.')
    for stack in ('encoder', 'decoder'):
      num_layers = getattr(self, f'num_{stack}_layers')
      for kind in ('layers', 'attention_layers'):
        pattern = getattr(self.moe, f'{stack}_{kind}') if self.moe else ()
        if isinstance(pattern, int) and not num_layers:  # every k-th of none
          continue
        last = pattern if isinstance(pattern, int) else max(pattern, default=-1) + 1
        if last > num_layers:
          raise ConfigError(
            f'MoeConfig.{stack}_{kind} is {pattern!r}, but the {stack} has {num_layers} layers; '
            f'every k-th layer needs k <= {num_layers}, explicit indices must be below {num_layers}.'
          )

  @property
  def experts(self) -> MoeConfig:
    """The settings of the Switch layers, for code that runs only where there are some.

    Raises:
      ConfigError: the model has none.
    """
    if self.moe is None:
      raise ConfigError('ModelConfig.moe is None; this needs a model with experts: set it to a config.MoeConfig.')
    return self.moe

  @property
  def is_decoder_only(self) -> bool:
    """Whether there is no encoder."""
    return self.num_encoder_layers == 0

  @property
  def stacks(self) -> tuple[Literal['encoder', 'decoder'], ...]:
    """The stacks that the model has."""
    return ('decoder',) if self.is_decoder_only else ('encoder', 'decoder')

  @property
  def zeroes_padding(self) -> bool:
    """Whether padding is zeroed before every part of a layer, as flaxformer does.

    It matters where padding competes for slots and a group has several rows: all of it then goes to the router's
    first expert, ahead of later rows.
    """
    return self.moe is not None and self.moe.padding_takes_slots and self.mask_padding_queries

  def num_layers(self, stack: Literal['encoder', 'decoder']) -> int:
    """Returns the number of layers of a stack."""
    return self.num_encoder_layers if stack == 'encoder' else self.num_decoder_layers

  def switch_layers(self, stack: Literal['encoder', 'decoder']) -> tuple[int, ...]:
    """Returns the indices of the layers whose feed-forward network is a Switch layer."""
    return layer_indices(getattr(self.moe, f'{stack}_layers'), self.num_layers(stack)) if self.moe else ()

  def switch_attention_layers(self, stack: Literal['encoder', 'decoder']) -> tuple[int, ...]:
    """Returns the indices of the layers whose self-attention has experts."""
    return layer_indices(getattr(self.moe, f'{stack}_attention_layers'), self.num_layers(stack)) if self.moe else ()
