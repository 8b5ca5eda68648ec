"""What is computed: the T5 encoder-decoder, or a decoder alone, dense or with Switch layers."""

import dataclasses
from typing import Literal

from switch_jax.config.moe import MoeConfig, layer_indices
from switch_jax.config.validation import Checked, ConfigError


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
