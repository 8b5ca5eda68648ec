"""Our Transformer inside T5X's own trainer, for those who have T5X pipelines. Needs T5X (docs/coming_from_t5x.md).

T5X gives the data, the optimizer, the partitioner and the checkpoints; this module gives the model and its loss.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.experimental.pjit
import jax.numpy as jnp
from flax import core, traverse_util
from flax.linen import meta, partitioning

from switch_jax.config import ConfigError, LossConfig, ModelConfig
from switch_jax.model import Transformer, parameter_axes
from switch_jax.model.losses import routing_metrics
from switch_jax.parallel import Layout
from switch_jax.training.sums import Objective

# T5X imports it from where newer releases of JAX no longer have it.
if not hasattr(jax.experimental.pjit, 'PartitionSpec'):
  jax.experimental.pjit.PartitionSpec = jax.sharding.PartitionSpec

from clu import metrics as clu_metrics
from t5x import models

# Names of our logical axes that T5X's rules know under another.
_AXES = {None: 'unmodeled', 'expert_embed': 'mlp_embed'}
_FEATURES = ('encoder_input_tokens', 'decoder_input_tokens', 'encoder_segment_ids', 'decoder_segment_ids')


class _PartitionedByT5x(Layout):
  """The layout of one device without constraints: T5X shards parameters and batch, the compiler the rest."""

  def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
    return x


class SwitchModel(models.EncoderDecoderModel):
  """A model of T5X that computes with `switch_jax.model.Transformer`.

  The logical axes of its parameters are those that T5X's `MoePjitPartitioner` and its rules for Adafactor know.
  Everything is partitioned automatically by them. Decoding is not offered: convert a checkpoint to switch_jax.

  Args:
    model_config: the model. `sequences_per_group` must be set where it has experts, or the whole batch is one group.
    input_vocabulary, output_vocabulary, optimizer_def: as for any model of T5X.
    z_loss, label_smoothing: of the language-model loss, which is divided by the real target tokens.
  """

  def __init__(
    self,
    model_config: ModelConfig,
    input_vocabulary: Any,
    output_vocabulary: Any,
    optimizer_def: Any,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
  ):
    if model_config.moe and model_config.moe.sequences_per_group is None:
      raise ConfigError('MoeConfig.sequences_per_group is None; under T5X it must be a number of rows, 1 for example.')
    if model_config.is_decoder_only:
      raise ConfigError('ModelConfig.num_encoder_layers is 0; under T5X the model needs an encoder.')
    self._config, self._layout = model_config, _PartitionedByT5x.single_device()
    self._objective = Objective(model_config, LossConfig(z_loss=z_loss, label_smoothing=label_smoothing))
    super().__init__(
      module=Transformer(model_config, self._layout),
      input_vocabulary=input_vocabulary,
      output_vocabulary=output_vocabulary,
      optimizer_def=optimizer_def,
    )

  def get_initial_variables(self, rng: jax.Array, input_shapes: Any, input_types: Any = None) -> Any:
    """Returns the parameters and, in the collection `params_axes`, the logical axes of each."""
    axes = traverse_util.flatten_dict(parameter_axes(self._config))
    named = {
      (*path[:-1], f'{path[-1]}_axes'): partitioning.AxisMetadata(tuple(_AXES.get(name, name) for name in names))
      for path, names in axes.items()
    }
    # Not init_parameters: that places its result on a device, and this runs inside T5X's own compilation.
    tokens = jnp.ones((self._config.moe.sequences_per_group if self._config.moe else 1, 1), jnp.int32)
    inputs = {'encoder_input_tokens': tokens, 'decoder_input_tokens': tokens}
    params = meta.unbox(self.module.init(rng, inputs)['params'])
    return core.freeze({'params': params, 'params_axes': traverse_util.unflatten_dict(named)})

  def _apply(self, params: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None) -> Any:
    model = Transformer(self._config, self._layout, deterministic=rng is None)
    streams = {} if rng is None else {'dropout': rng, 'jitter': jax.random.fold_in(rng, 1)}
    features = {name: jnp.asarray(batch[name]) for name in _FEATURES if name in batch}
    return model.apply({'params': core.unfreeze(params)}, features, rngs=streams)

  def _compute_logits(self, params: Any, batch: Any, dropout_rng: jax.Array | None = None, **_: Any) -> jax.Array:
    return self._apply(params, batch, dropout_rng)[0]

  def loss_fn(self, params: Any, batch: Any, dropout_rng: jax.Array | None) -> tuple[jax.Array, Any]:
    """Returns our loss, router losses included, and T5X's metrics with those of routing beside them."""
    logits, statistics = self._apply(params, batch, dropout_rng)
    targets = batch['decoder_target_tokens']
    weights = batch.get('decoder_loss_weights', (targets > 0).astype(jnp.float32))
    sums = self._objective.sums(logits, {**batch, 'decoder_loss_weights': weights}, statistics)
    loss, routing = self._objective.value(sums)
    z_loss = sums.targets.z_loss / jnp.maximum(sums.targets.tokens, 1.0)
    metrics = self._compute_metrics(logits=logits, targets=targets, mask=weights, loss=loss, z_loss=z_loss)
    routing |= routing_metrics(sums.routers)
    average = clu_metrics.Average.from_model_output
    metrics |= {f'experts/{name}': average(value) for name, value in routing.items() if '/' not in name}
    return loss, metrics

  def predict_batch_with_aux(self, *arguments: Any, **settings: Any) -> Any:
    """Raises a `ConfigError`: T5X's decoding wants a cache laid out as flaxformer's."""
    raise ConfigError('SwitchModel trains and scores under T5X; to decode, convert the checkpoint to switch_jax.')
