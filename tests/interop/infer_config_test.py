"""Configurations from shapes alone, for every kind of model, and what overrides may and may not do."""

import dataclasses

import numpy as np
import pytest

from switch_jax import interop
from switch_jax.config import ConfigError, ModelConfig, MoeConfig
from switch_jax.config.validation import field_types
from switch_jax.interop import infer_config
from switch_jax.interop.stored import Checkpoint, StoredArray


def infer(shapes, **overrides):
  """Returns the configuration of a checkpoint with parameters of these shapes."""
  arrays = {name: StoredArray(shape, lambda box: np.zeros(0)) for name, shape in shapes.items()}
  return infer_config.model_config(Checkpoint('/c', arrays), overrides)


def fails(match, shapes, **overrides):
  with pytest.raises(ConfigError, match=match) as caught:
    infer(shapes, **overrides)
  assert '\n' not in str(caught.value)


@pytest.fixture
def shapes(sparse_model):
  return interop.parameter_shapes(sparse_model)


def released(config: ModelConfig, **of_moe) -> ModelConfig:
  """Completes a configuration by what no checkpoint records, as the released models have it."""
  moe = config.moe and dataclasses.replace(
    config.moe, jitter_noise=0.0, padding_takes_slots=True, capacity_rounding='round', **of_moe
  )
  return dataclasses.replace(config, init='released', init_scale=0.1 if moe else 1.0, moe=moe)


SIZES = dict(vocab_size=33, num_encoder_layers=4, num_decoder_layers=6, num_heads=3, head_dim=5, emb_dim=8, mlp_dim=9)
BASE = ModelConfig(**SIZES, moe=MoeConfig(num_experts=8, min_expert_capacity=4))
XXL = ModelConfig(
  **SIZES,
  mlp_activations=('gelu', 'linear'),
  logits_via_embedding=False,
  moe=MoeConfig(num_experts=8, min_expert_capacity=2, eval_capacity_factor=4.0),
)
C = ModelConfig(
  **SIZES,
  logits_via_embedding=False,
  moe=MoeConfig(num_experts=16, encoder_layers=1, decoder_layers=1, min_expert_capacity=2, train_capacity_factor=1.0),
)


def with_moe(config, **fields):
  return dataclasses.replace(config, moe=dataclasses.replace(config.moe, **fields))


@pytest.mark.parametrize(
  'config',
  [
    pytest.param(BASE, id='Base'),
    pytest.param(XXL, id='XXL'),
    pytest.param(C, id='C'),
    pytest.param(with_moe(BASE, encoder_layers=(1, 2), decoder_layers=3), id='other layers'),
    pytest.param(with_moe(BASE, encoder_layers=(0,), decoder_layers=()), id='no experts in the decoder'),
    pytest.param(with_moe(BASE, encoder_layers=(), decoder_layers=6), id='no experts in the encoder'),
    pytest.param(with_moe(BASE, num_experts=1), id='one expert'),
    pytest.param(with_moe(BASE, expert_mlp_dim=20), id='wide experts'),
    pytest.param(dataclasses.replace(BASE, relpos_num_buckets=20), id='fewer buckets'),
    pytest.param(dataclasses.replace(BASE, moe=None), id='dense'),
    pytest.param(dataclasses.replace(XXL, moe=None), id='dense, version 1.1'),
    pytest.param(ModelConfig(**{**SIZES, 'num_decoder_layers': 12}, moe=None), id='more than ten layers'),
  ],
)
def test_shapes_tell(config):
  assert infer(interop.parameter_shapes(config)) == released(config)


# Overrides.


def test_overrides_win(shapes):
  config = infer(
    shapes,
    sequences_per_group=2,
    eval_capacity_factor=None,
    expert_dropout_rate=0.4,
    dropout_rate=0.1,
    mlp_activations=('silu',),
    activation_dtype='bfloat16',
    mask_padding_queries=False,
  )
  assert (config.moe.sequences_per_group, config.moe.eval_capacity_factor) == (2, None)
  assert (config.dropout_rate, config.moe.expert_dropout_rate) == (0.1, 0.4)
  assert config.mlp_activations == ('silu',)
  assert (config.activation_dtype, config.mask_padding_queries) == ('bfloat16', False)


def test_overrides_that_repeat_the_shapes(shapes, sparse_model):
  assert infer(shapes, num_experts=3, num_heads=2, encoder_layers=(1,), decoder_layers=(1, 3), expert_mlp_dim=7)
  assert infer(shapes, moe=sparse_model.moe).moe == sparse_model.moe


def test_networks_after_the_experts_are_seen(sparse_model):
  model = with_moe(sparse_model, extra_mlp=True)
  assert infer(interop.parameter_shapes(model)).moe.extra_mlp
  assert not infer(interop.parameter_shapes(sparse_model)).moe.extra_mlp


def test_no_name_is_a_field_of_both():
  assert not set(field_types(ModelConfig)) & set(field_types(MoeConfig))


@pytest.mark.parametrize(
  ('overrides', 'match'),
  [
    ({'eval_capacity_facter': 1.0}, "eval_capacity_facter is no field .* Did you mean 'eval_capacity_factor'"),
    ({'num_head': 2}, "num_head is no field .* Did you mean 'num_heads'"),
    ({'expert_capacity': '3'}, "MoeConfig.expert_capacity is '3'; it must be an integer or None"),
    ({'num_experts': 4}, 'num_experts=4 contradicts the parameters of /c'),
    ({'num_heads': 3, 'head_dim': 2, 'dropout_rate': 0.1}, 'num_heads=3, head_dim=2 contradicts'),
    ({'num_decoder_layers': 5}, 'num_decoder_layers=5 contradicts'),
    ({'encoder_layers': 1}, 'encoder_layers=1 contradicts'),
    ({'logits_via_embedding': False}, 'logits_via_embedding=False contradicts'),
    ({'mlp_activations': ('gelu', 'linear')}, 'mlp_activations=.* contradicts'),
    ({'moe': None}, 'moe=None contradicts'),
    ({'encoder_attention_layers': (0,)}, r'encoder_attention_layers=\(0,\) contradicts'),
    ({'expert_capacity': 3, 'eval_capacity_factor': 2.0}, 'eval_capacity_factor would have no effect.*_capacity=3'),
  ],
)  # fmt: skip
def test_wrong_overrides(shapes, overrides, match):
  fails(match, shapes, **overrides)


def test_experts_asked_of_a_dense_model(sparse_model):
  dense = interop.parameter_shapes(dataclasses.replace(sparse_model, moe=None))
  fails(
    'is a dense T5, without experts; eval_capacity_factor, num_experts', dense, num_experts=8, eval_capacity_factor=2.0
  )


# Parameters that make no model.


def test_missing_parameters(shapes):
  for name in shapes:
    rest = {other: shape for other, shape in shapes.items() if other != name}
    fails(r'/c (lacks|has)', rest)
  del shapes['decoder/layers_1/mlp/expert/wo/kernel'], shapes['encoder/encoder_norm/scale']
  fails('lacks parameters decoder/layers_1/mlp/expert/wo/kernel, encoder/encoder_norm/scale;', shapes)


def test_no_decoder(shapes):
  encoder = {name: shape for name, shape in shapes.items() if not name.startswith('decoder')}
  fails('lacks parameters decoder/layers_0/pre_mlp_layer_norm/scale', encoder)


def test_unknown_parameters(shapes):
  shapes |= {f'encoder/layers_0/mlp/extra_{i}/kernel': (2, 2) for i in range(8)}
  fails('has the unknown parameters encoder/layers_0/mlp/extra_0/kernel, .*extra_7/kernel;', shapes)


@pytest.mark.parametrize(
  ('name', 'shape', 'match'),
  [
    ('encoder/layers_1/mlp/expert/wi/kernel', (2, 10, 7), r'contradict each other: .*router_weights/w/kernel'),
    ('decoder/layers_1/mlp/expert/wo/kernel', (3, 7, 9), r'contradict each other: decoder/layers_1/mlp/expert/wo'),
    ('encoder/relpos_bias/rel_embedding', (4, 32), 'has 4 heads .* kernels of width 6, which 4 does not divide'),
    ('encoder/relpos_bias/rel_embedding', (3, 32), r'each other: decoder/relpos_bias/rel_embedding \(2, 32\)'),
    ('token_embedder/embedding', (11,), r'has the shape \(11,\); it must have 2 axes'),
    ('encoder/layers_0/attention/query/kernel', (10, 2, 3), r'it must have 2 axes'),
  ],
)  # fmt: skip
def test_shapes_that_contradict_each_other(shapes, name, shape, match):
  assert name in shapes
  fails(match, shapes | {name: shape})


def test_scanned_checkpoints(shapes):
  fails('has the unknown parameters', shapes | {'encoder/encoder/subblock_0/mlp/wi/kernel': (10, 2, 7)})
