"""Impossible experts are refused, and patterns select layers."""

import dataclasses

import pytest

from switch_jax.config import ConfigError, ModelConfig, MoeConfig

MODEL = ModelConfig(
  vocab_size=384, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=4, num_decoder_layers=4
)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(num_experts=1, router='top2'), r'num_experts is 1; top-2 routing needs at least 2'),
    (dict(router='expert_choice'), r"router is 'expert_choice'; .* encoders only: set decoder_layers=\(\)"),
    (dict(slot_priority='probability'), r"slot_priority is 'probability'; .* encoders only"),
    (dict(router='expert_choice', decoder_layers=(), eval_capacity_factor=None), r'eval_capacity_factor is None; .*'),
    (dict(router='no_token_left_behind', num_choices=9), r'num_choices is 9; there are only 4 experts'),
    (dict(router='top_1'), r"router is 'top_1'; it must be one of .* Did you mean 'top1'\?"),
    (dict(exploration='jitter'), r"exploration is 'jitter'; it must be one of 'argmax', .*"),
    (dict(second_policy_train='thresh'), r"Did you mean 'threshold'\?"),
    (dict(train_capacity_factor=-1.0), r'train_capacity_factor is -1.0; it must be greater than 0'),
    (dict(eval_capacity_factor=0.0), r'eval_capacity_factor is 0.0; it must be greater than 0'),
    (dict(expert_capacity=0), r'expert_capacity is 0; it must be at least 1'),
    (dict(min_expert_capacity=0), r'min_expert_capacity is 0; it must be at least 1'),
    (
      dict(router='top2', exploration='input_jitter'),
      r"exploration is 'input_jitter'; the router top2 does not explore",
    ),
    (dict(router='top2', exploration='sample'), r"exploration is 'sample'; the router top2 does not explore"),
    (dict(router='no_token_left_behind', exploration='sample'), r'no_token_left_behind does not sample; use "argmax"'),
    (
      dict(router='expert_choice', exploration='sample', decoder_layers=()),
      r'expert_choice does not sample; .*jitter"',
    ),
    (dict(eval_capacity_factor=float('nan')), r'eval_capacity_factor is nan; it must be a number or None'),
    (dict(num_experts=8.0), r'num_experts is 8.0; it must be an integer. Write 8\.'),
    (dict(num_experts=True), r'num_experts is True; it must be an integer'),
    (dict(num_experts=0), r'num_experts is 0; it must be at least 1'),
    (dict(encoder_layers=0), r'encoder_layers is 0; .* for no layer write \(\)'),
    (dict(encoder_layers=(3, 1)), r'rise strictly'),
    (dict(expert_dropout_rate=1.0), r'expert_dropout_rate is 1.0; a rate must be at least 0 and less than 1'),
    (
      dict(dispatch='ragged', router='top2'),
      r"^MoeConfig.router is 'top2'; the dispatch ragged numbers one queue of each expert over all shards, by top1 "
      r'alone; use "top1", or set dispatch="slots"\.$',
    ),
    (
      dict(dispatch='ragged', slot_priority='probability', decoder_layers=()),
      r"^MoeConfig.slot_priority is 'probability'; the dispatch ragged takes tokens in their order over all shards; "
      r'use "position", or set dispatch="slots"\.$',
    ),
    (
      dict(dispatch='ragged', sequences_per_group=2),
      r'^MoeConfig.sequences_per_group is 2; the dispatch ragged has one group of all shards that exchange tokens; '
      r'leave it None, or set dispatch="slots"\.$',
    ),
    (
      dict(ragged_buffer_factor=0.5),
      r'^MoeConfig.ragged_buffer_factor is 0.5; a shard gets a row for each of its tokens on average; use at least '
      r'1.0, or leave it None, which drops nothing\.$',
    ),
    (
      dict(ragged_buffer_factor=2.0),
      r'^MoeConfig.ragged_buffer_factor is 2.0; only the dispatch ragged has it; set dispatch="ragged", or leave it '
      r'None, which drops nothing\.$',
    ),
    (
      dict(ragged_buffer_factor=2.0, dispatch='ragged'),
      r'^MoeConfig.ragged_buffer_factor is 2.0; experts with a capacity have no buffer; set train_capacity_factor and '
      r'expert_capacity to None, or leave it None, which drops nothing\.$',
    ),
    (
      dict(ragged_buffer_factor=2.0, dispatch='ragged', train_capacity_factor=None, expert_dropout_rate=0.4),
      r'^MoeConfig.ragged_buffer_factor is 2.0; expert dropout is drawn by numbers of tokens, which a buffer lacks; '
      r'set expert_dropout_rate=0.0, or leave it None, which drops nothing\.$',
    ),
    (dict(dispatch='raged'), r"dispatch is 'raged'; it must be one of 'slots', 'einsum', 'ragged'. Did you mean"),
    (dict(sample_temperature=0.0), r'sample_temperature is 0.0; it must be greater than 0'),
  ],
)
def test_impossible_experts_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    MoeConfig(**{'num_experts': 4, **fields})


def test_exploration_is_the_default_of_the_router():
  found = {router: MoeConfig(num_experts=4, router=router).explores for router in ('top1', 'top2')}
  assert found == {'top1': 'input_jitter', 'top2': 'argmax'}
  assert MoeConfig(num_experts=4, router='no_token_left_behind').explores == 'input_jitter'
  assert MoeConfig(num_experts=4, exploration='sample').explores == 'sample'


def test_what_older_versions_recorded_of_top2_is_read():
  recorded = MoeConfig(num_experts=4, router='top2').to_json() | {'exploration': 'input_jitter'}
  assert MoeConfig.from_json(recorded) == MoeConfig(num_experts=4, router='top2')
  assert MoeConfig.from_json(recorded | {'router': 'top1'}).explores == 'input_jitter'


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
