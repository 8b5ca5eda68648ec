"""Our model in T5X's own trainer; runs where T5X can be imported (docs/coming_from_t5x.md)."""

import jax
import jax.experimental.pjit
import numpy as np
import pytest

if not hasattr(jax.experimental.pjit, 'PartitionSpec'):
  jax.experimental.pjit.PartitionSpec = jax.sharding.PartitionSpec
pytest.importorskip('t5x.trainer', reason='T5X is not installed', exc_type=ImportError)

# On CPUs T5X puts all devices on its model axis, so 8 must divide the widths.
CONFIG = dict(
  vocab_size=64, emb_dim=16, num_heads=8, head_dim=2, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2
)
ROWS, LENGTH = 8, 12


def test_t5x_trains_it_and_we_read_what_t5x_saves(tmp_path):
  import seqio
  from t5x import adafactor, checkpoints, trainer, utils
  from t5x.contrib.moe import adafactor_utils
  from t5x.contrib.moe import partitioning as moe_partitioning

  from switch_jax import interop
  from switch_jax.config import ModelConfig, MoeConfig
  from switch_jax.t5x_adapter import SwitchModel

  vocabulary = seqio.PassThroughVocabulary(64)
  config = ModelConfig(**CONFIG, moe=MoeConfig(num_experts=4, sequences_per_group=1))
  optimizer = adafactor.Adafactor(
    decay_rate=0.8, step_offset=0, logical_factor_rules=adafactor_utils.logical_factor_rules()
  )
  model = SwitchModel(config, vocabulary, vocabulary, optimizer, z_loss=1e-4)
  partitioner = moe_partitioning.MoePjitPartitioner(num_expert_partitions=4, num_partitions=1)
  shapes = {name: (ROWS, LENGTH) for name in ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')}
  initializer = utils.TrainStateInitializer(
    optimizer_def=optimizer, init_fn=model.get_initial_variables, input_shapes=shapes, partitioner=partitioner
  )
  state = initializer.from_scratch(jax.random.PRNGKey(0))
  loop = trainer.Trainer(
    model, state, partitioner, eval_names=[], summary_dir=None, train_state_axes=initializer.train_state_axes,
    rng=jax.random.PRNGKey(1), learning_rate_fn=lambda step: 0.03, num_microbatches=None,
  )  # fmt: skip
  random = np.random.default_rng(0)
  tokens = random.integers(1, 8, (ROWS, LENGTH)).astype(np.int32)
  shifted = np.pad(tokens[:, :-1], ((0, 0), (1, 0)))
  batch = {'encoder_input_tokens': tokens, 'decoder_input_tokens': shifted, 'decoder_target_tokens': tokens}

  def mean_loss():
    total, metrics = model.loss_fn(loop.train_state.params, batch, None)
    assert 'experts/load_balance_loss' in metrics
    return float(total)

  before = mean_loss()
  loop.train(iter([batch] * 30), 30)
  after = mean_loss()
  assert after < before - 0.5, (before, after)

  saver = checkpoints.Checkpointer(loop.train_state, partitioner, str(tmp_path))
  saver.save(loop.train_state)
  found, params = interop.load('t5x', tmp_path / 'checkpoint_30')
  assert found.moe.num_experts == 4
  saved = loop.train_state.params['encoder']['layers_1']['mlp']['expert']['wi']['kernel']
  np.testing.assert_array_equal(params['encoder']['layers_1']['mlp']['expert']['wi']['kernel'], saved)
