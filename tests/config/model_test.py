"""Impossible models are refused, and patterns select layers."""

import dataclasses

import pytest

from switch_jax.config import ConfigError, ModelConfig, MoeConfig

MODEL = ModelConfig(
  vocab_size=384, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=4, num_decoder_layers=4
)


@pytest.mark.parametrize('pattern', [5, (1, 4)])
def test_layers_that_do_not_exist_are_refused(pattern):
  with pytest.raises(ConfigError, match='the encoder has 4 layers'):
    dataclasses.replace(MODEL, moe=MoeConfig(num_experts=4, encoder_layers=pattern))


def test_patterns_select_layers():
  model = dataclasses.replace(MODEL, moe=MoeConfig(num_experts=4, encoder_layers=2, decoder_layers=(0, 3)))
  assert model.switch_layers('encoder') == (1, 3)
  assert model.switch_layers('decoder') == (0, 3)
  every = dataclasses.replace(MODEL, moe=MoeConfig(num_experts=4, encoder_layers=1, decoder_layers=()))
  assert every.switch_layers('encoder') == (0, 1, 2, 3)
  assert every.switch_layers('decoder') == ()


def test_a_model_without_an_encoder_has_no_experts_there():
  model = dataclasses.replace(MODEL, num_encoder_layers=0, moe=MoeConfig(num_experts=4, encoder_attention_layers=1))
  assert (model.is_decoder_only, MODEL.is_decoder_only) == (True, False)
  assert model.switch_layers('encoder') == model.switch_attention_layers('encoder') == ()
  with pytest.raises(ConfigError, match=r'encoder_layers is \(1,\), but the encoder has 0 layers'):
    dataclasses.replace(model, moe=MoeConfig(num_experts=4, encoder_layers=(1,)))


def test_experts_of_a_model_without_any_are_an_error():
  moe = MoeConfig(num_experts=4)
  assert dataclasses.replace(MODEL, moe=moe).experts is moe
  with pytest.raises(ConfigError, match=r'ModelConfig.moe is None; .* set it to a config.MoeConfig'):
    _ = MODEL.experts


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(emb_dim=0), 'emb_dim is 0; it must be at least 1'),
    (dict(mlp_activations=()), r'mlp_activations is \(\); give one, or two for a gated layer'),
    (dict(mlp_activations=('gelu', 'tanh')), 'it must be a tuple of one of'),
    (dict(dropout_rate=1.0), 'a rate must be at least 0 and less than 1'),
    (dict(relpos_num_buckets=2), 'relpos_num_buckets is 2; it must be an even number of at least 4'),
    (dict(relpos_num_buckets=33), 'relpos_num_buckets is 33; it must be an even number'),
    (
      dict(relpos_max_distance=16),
      'relpos_max_distance is 16; of 32 buckets 16 are for exact distances; it must exceed 16',
    ),
    (dict(relpos_max_distance=2**31), 'relpos_max_distance is 2147483648; .*up to 2'),
    (dict(num_encoder_layers=-1), 'num_encoder_layers is -1; it must be at least 0'),
    (dict(prefix_lm=True), r'prefix_lm is True; a prefix is for models without an encoder; set num_encoder_layers=0'),
    (dict(positions='rotary', head_dim=7), "positions is 'rotary'; .* head_dim is 7; use an even one"),
    (dict(rotary_base=1.0), 'rotary_base is 1.0; it must be greater than 1'),
  ],
)
def test_impossible_models_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(MODEL, **fields)
