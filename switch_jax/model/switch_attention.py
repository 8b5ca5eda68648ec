"""Switch attention (paper appendix A): experts in place of the matrices that make query, key and value.

One set of experts makes the query, another a shared key and value. All of it is float32, whatever the activations are
(in bfloat16 the paper saw it diverge); only the output is cast back to the residual stream's dtype.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from switch_jax.config import ModelConfig
from switch_jax.model import initializers
from switch_jax.model.attention import dispatch_attention
from switch_jax.model.layers import Dense
from switch_jax.model.routing import RoutingStatistics
from switch_jax.model.switch import SwitchLayer
from switch_jax.parallel import Layout


class SwitchSelfAttention(nn.Module):
  """Self-attention whose query and shared key/value come from experts."""

  config: ModelConfig
  layout: Layout
  deterministic: bool
  causal: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, real: jax.Array, segments: tuple[jax.Array, jax.Array], bias: jax.Array
  ) -> tuple[jax.Array, dict[str, RoutingStatistics]]:
    """Attends within `x`.

    Args:
      x: `[batch, length, embed]`.
      real: bool `[batch, length]`, False for padding.
      segments: int32 segment ids of queries and of keys, each `[batch, length]`.
      bias: float32 `[heads, length, length]`.

    Returns:
      `[batch, length, embed]` in the dtype of `x`, and the statistics of the two routers.
    """
    config = self.config
    joined = config.num_heads * config.head_dim
    y = x.astype(jnp.float32)

    def project(name, init):
      layer = SwitchLayer(
        config, self.layout, self.deterministic, config.moe.attention_expert, joined, init, name=name
      )  # fmt: skip
      z, statistics = layer(y, real)
      return z.reshape(*z.shape[:-1], config.num_heads, config.head_dim), statistics

    query, query_statistics = project('query', 'query')
    key, key_statistics = project('key_value', 'attention')
    z = dispatch_attention(
      self, config, self.layout, query, key, key, *segments, bias,
      deterministic=self.deterministic, causal=self.causal,
    )  # fmt: skip
    out = Dense((joined, config.emb_dim), ('joined_kv', 'embed'), initializers.kernel(config, 'attention'), name='out')
    z = out(z.reshape(*z.shape[:-2], joined)).astype(x.dtype)
    return z, {'attention_query': query_statistics, 'attention_key_value': key_statistics}
