"""Switch attention (paper appendix A): experts in place of the matrices that make query, key and value.

One set of experts makes the query, another a shared key and value. All of it is float32, whatever the activations are
(in bfloat16 the paper saw it diverge); only the output is cast back to the residual stream's dtype.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from switch_jax import kernels
from switch_jax.config import ModelConfig
from switch_jax.model import initializers
from switch_jax.model.attention import Segments, draw_keep
from switch_jax.model.cache import Pair, StepContext, attend_to_cache, heads_first, heads_last
from switch_jax.model.layers import Dense
from switch_jax.model.routing import RoutingStatistics
from switch_jax.model.switch import SwitchLayer
from switch_jax.parallel import Layout


class SwitchSelfAttention(nn.Module):
  """Self-attention whose query and shared key/value come from experts; called as `MultiHeadAttention`."""

  config: ModelConfig
  layout: Layout
  deterministic: bool
  causal: bool = False

  def setup(self) -> None:
    config = self.config
    joined = config.num_heads * config.head_dim

    def projection(init: initializers.Kind) -> SwitchLayer:
      return SwitchLayer(config, self.layout, self.deterministic, config.experts.attention_expert, joined, init)

    self.query, self.key_value = projection('query'), projection('attention')
    init = initializers.kernel(config, 'attention')
    self.out = Dense((joined, config.emb_dim), ('joined_kv', 'embed'), init)

  def __call__(
    self, x: jax.Array, memory: jax.Array, segments: Segments, bias: jax.Array, real: jax.Array
  ) -> tuple[jax.Array, dict[str, RoutingStatistics]]:
    """Attends within `x`.

    Args:
      x, memory: the same array `[batch, length, embed]`.
      segments: int32 segment ids of queries and of keys, each `[batch, length]`.
      bias: float32 `[heads, length, length]`.
      real: bool `[batch, length]`, False for padding.

    Returns:
      `[batch, length, embed]` in the dtype of `x`, and the statistics of the two routers.
    """
    y = x.astype(jnp.float32)
    (query, of_query), (key, of_key) = self.query(y, real), self.key_value(y, real)
    query, key = (z.reshape(*z.shape[:-1], self.config.num_heads, -1) for z in (query, key))
    keep = draw_keep(self, self.config, query.shape[0], key.shape[1])
    z = kernels.attention(self.layout, query, key, key, *segments, bias, keep, causal=self.causal)
    z = self.out(z.reshape(*z.shape[:-2], -1)).astype(x.dtype)
    return z, {'attention_query': of_query, 'attention_key_value': of_key}

  def step(self, x: jax.Array, kept: Pair, context: StepContext) -> tuple[jax.Array, Pair]:
    """As `MultiHeadAttention.step`."""
    y = x.astype(jnp.float32)
    query, key = (
      heads_first(layer(y, context.real, never_drop=True)[0], self.config.num_heads)
      for layer in (self.query, self.key_value)
    )
    z, kept = attend_to_cache(query, (key, key), kept, context)
    return self.out(heads_last(z)).astype(x.dtype), kept
