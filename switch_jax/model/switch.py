"""The Switch layer (paper section 2) in Flax: the parameters of router and experts, and their noise.

The router runs in float32 over global arrays, where its noise is drawn too, so that noise does not depend on the mesh.
What is done with logits and kernels is `experts.apply`.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from switch_jax.config import ModelConfig
from switch_jax.model import experts, initializers
from switch_jax.model.experts import Kind
from switch_jax.model.layers import Kernel, MlpBlock, input_kernel_names
from switch_jax.model.routing import RoutingStatistics
from switch_jax.parallel import Layout

Outputs = Mapping[str, tuple[int, initializers.Kind]]


class RouterWeights(nn.Module):
  """Holds the router's matrix under T5X's name `router_weights/w/kernel`."""

  config: ModelConfig

  @nn.compact
  def __call__(self) -> jax.Array:
    """Returns the float32 kernel `[embed, num_experts]`."""
    shape = (self.config.emb_dim, self.config.experts.num_experts)
    return Kernel(shape, ('embed', None), initializers.kernel(self.config, 'router'), name='w')()


class Router(nn.Module):
  """The router's logits and, in training, its exploration (sections 2.2 and 2.4, appendix C)."""

  config: ModelConfig
  deterministic: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Returns the logits `[batch, length, num_experts]` of tokens `[batch, length, embed]`, in `router_dtype`.

    And the experts' biases, float32 `[num_experts]`: a parameter that the training step moves by the load and no
    gradient does (`training.expert_bias`); None without `bias_update_rate`.
    """
    moe, bias = self.config.experts, None
    if moe.bias_update_rate is not None:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), (None,))
      bias = self.param('expert_bias', zeros, (moe.num_experts,), jnp.float32)
    kernel = RouterWeights(self.config, name='router_weights')()
    # Section 2.4: only the router sees float32 and noise; the experts get the clean input in the activation dtype.
    y = x.astype(moe.router_dtype)
    if not self.deterministic:
      if moe.explores == 'input_jitter' and moe.jitter_noise > 0:
        low, high = 1 - moe.jitter_noise, 1 + moe.jitter_noise
        y = y * jax.random.uniform(self.make_rng('jitter'), y.shape, y.dtype, low, high)
      elif moe.explores == 'input_dropout':
        y = nn.Dropout(moe.router_input_dropout_rate, rng_collection='jitter')(y, deterministic=False)
    # The default precision of a float32 product on TPUs is bfloat16.
    return jnp.einsum('bld,de->ble', y, kernel.astype(y.dtype), precision=jax.lax.Precision.HIGHEST), bias


class ExpertKernels(nn.Module):
  """The experts' matrices, stacked over `num_experts`, under T5X's names."""

  config: ModelConfig
  kind: Kind
  outputs: Outputs

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    """Returns `{name: float32 [num_experts, fan_in, fan_out]}`: `w`, or `wi` (`wi_0`, `wi_1`) and `wo`.

    The last of them is the output kernels side by side.
    """
    config, num_experts = self.config, self.config.experts.num_experts
    kernels: dict[str, jax.Array] = {}
    if self.kind == 'linear':
      name, fan_in, axes = 'w', config.emb_dim, ('expert', 'expert_embed', 'expert_mlp')
    else:
      name, fan_in, axes = (
        'wo',
        config.experts.expert_mlp_dim or config.mlp_dim,
        ('expert', 'expert_mlp', 'expert_embed'),
      )
      shape, init = (num_experts, config.emb_dim, fan_in), initializers.kernel(config, 'expert')
      for wi in input_kernel_names(config):
        kernels[wi] = Kernel(shape, ('expert', 'expert_embed', 'expert_mlp'), init, name=wi)()
    last = [
      Kernel((num_experts, fan_in, width), axes, initializers.kernel(config, init), name=output)()
      for output, (width, init) in self.outputs.items()
    ]
    return kernels | {name: last[0] if len(last) == 1 else jnp.concatenate(last, axis=-1)}


class SwitchLayer(nn.Module):
  """Routes every token to its experts and returns the gated sum of their outputs, and of shared experts.

  Attributes:
    kind: what an expert is: the feed-forward network `mlp`, or a `linear` map.
    outputs: by name, the width and the initial values of each output kernel of an expert; None is `wo`, of `emb_dim`.
  """

  config: ModelConfig
  layout: Layout
  deterministic: bool
  kind: Kind = 'mlp'
  outputs: Outputs | None = None

  @nn.compact
  def __call__(self, x: jax.Array, real: jax.Array, never_drop: bool = False) -> tuple[jax.Array, RoutingStatistics]:
    """Applies the layer.

    Args:
      x: tokens `[batch, length, embed]`.
      real: bool `[batch, length]`, False for padding.
      never_drop: as many slots as needed and one group, whatever the configuration says (decoding).

    Returns:
      `[batch, length, sum of the widths]` in the dtype of `x`, where a token was dropped zero or what the shared
      experts make of it; and the routing statistics, arrays whose first axis is all groups of the batch.
    """
    config, moe = self.config, self.config.experts
    outputs = self.outputs or {'wo': (config.emb_dim, 'expert')}
    logits, bias = Router(config, self.deterministic, name='router')(x)
    kernels = ExpertKernels(config, self.kind, outputs, name='expert')()
    noise = {}
    if moe.explores == 'sample' and not self.deterministic:
      noise['gumbel'] = jax.random.gumbel(self.make_rng('jitter'), logits.shape, jnp.float32)
    policy = moe.second_policy_eval if self.deterministic else moe.second_policy_train
    if moe.router == 'top2' and policy == 'random':
      key = jax.random.key(0) if self.deterministic else self.make_rng('jitter')
      noise['uniform'] = jax.random.uniform(key, real.shape, jnp.float32)
    dropout = moe.expert_dropout_rate > 0 and not self.deterministic and self.kind == 'mlp'
    dropout_key = self.make_rng('dropout') if dropout else None
    out_dim = sum(width for width, _ in outputs.values())
    how = experts.Experts(config, self.layout, self.deterministic, self.kind, out_dim, never_drop)
    y, statistics = experts.apply(how, x, logits, real, noise, kernels, dropout_key, bias)
    if self.outputs is None and (width := moe.shared_width(config.mlp_dim)):
      y += MlpBlock(config, self.layout, self.deterministic, width, name='shared_expert')(x)
    return y, statistics
