"""Switch attention (paper appendix A): experts in place of the matrices that make query, key and value.

One router sends a token to an expert, which makes its query by one matrix and its shared key and value by another, of
the same hidden units where experts are feed-forward networks (the paper's code). All of it is float32, whatever the
activations are (in bfloat16 the paper saw it diverge); only the output is cast back to the residual stream's dtype.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from switch_jax import kernels
from switch_jax.config import ModelConfig
from switch_jax.model import initializers
from switch_jax.model.attention import Segments, draw_keep, with_positions
from switch_jax.model.cache import Pair, StepContext, attend_to_cache, heads_first, heads_last
from switch_jax.model.layers import Dense
from switch_jax.model.routing import RoutingStatistics
from switch_jax.model.switch import Outputs, SwitchLayer
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

    outputs: Outputs = {'query': (joined, 'query'), 'key_value': (joined, 'attention')}
    kind = config.experts.attention_expert
    self.query_key_value = SwitchLayer(config, self.layout, self.deterministic, kind, outputs)
    init = initializers.kernel(config, 'attention')
    self.out = Dense(config, self.layout, (joined, config.emb_dim), ('joined_kv', 'embed'), init)

  def __call__(
    self,
    x: jax.Array,
    memory: jax.Array,
    segments: Segments,
    bias: jax.Array | None,
    real: jax.Array,
    prefix: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, RoutingStatistics]]:
    """Attends within `x`.

    Args:
      x, memory: the same array `[batch, length, embed]`.
      segments: int32 segment ids of queries and of keys, each `[batch, length]`.
      bias: float32 `[heads, length, length]`.
      real: bool `[batch, length]`, False for padding.
      prefix: as `MultiHeadAttention`.

    Returns:
      `[batch, length, embed]` in the dtype of `x`, and the statistics of the router.
    """
    y, statistics = self.query_key_value(x.astype(jnp.float32), real)
    query, value = (z.reshape(*z.shape[:-1], self.config.num_heads, -1) for z in jnp.split(y, 2, axis=-1))
    query, key = with_positions(self.config, query, value)
    keep = draw_keep(self, self.config, query.shape[0], key.shape[1])
    z = kernels.attention(self.layout, query, key, value, *segments, bias, keep, prefix, causal=self.causal)
    z = self.out(z.reshape(*z.shape[:-2], -1)).astype(x.dtype)
    return z, {'attention': statistics}

  def step(self, x: jax.Array, kept: Pair, context: StepContext) -> tuple[jax.Array, Pair]:
    """As `MultiHeadAttention.step`."""
    y, _ = self.query_key_value(x.astype(jnp.float32), context.real, never_drop=True)
    query, value = (heads_first(z, self.config.num_heads) for z in jnp.split(y, 2, axis=-1))
    query, key = with_positions(self.config, query, value, context.position)
    z, kept = attend_to_cache(query, (key, value), kept, context)
    return self.out(heads_last(z)).astype(x.dtype), kept
