"""Impossible settings are refused when a configuration is made: what was got, the rule, the remedy."""

import dataclasses

import pytest

from switch_jax.config import (
  ConfigError,
  DataConfig,
  MeshConfig,
  ModelConfig,
  MoeConfig,
  OptimizerConfig,
  RunConfig,
  first_line,
)

MODEL = ModelConfig(
  vocab_size=384, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=4, num_decoder_layers=4
)
DATA = DataConfig(mixture_or_task_name='task', feature_lengths={'inputs': 8, 'targets': 4}, batch_size=8)


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
    (dict(train_capacity_factor=-1.0), r'train_capacity_factor is -1.0; it must be at least 0'),
    (dict(eval_capacity_factor=float('nan')), r'eval_capacity_factor is nan; it must be a number or None'),
    (dict(num_experts=8.0), r'num_experts is 8.0; it must be an integer. Write 8\.'),
    (dict(num_experts=True), r'num_experts is True; it must be an integer'),
    (dict(num_experts=0), r'num_experts is 0; it must be at least 1'),
    (dict(encoder_layers=0), r'encoder_layers is 0; .* for no layer write \(\)'),
    (dict(encoder_layers=(3, 1)), r'rise strictly'),
    (dict(expert_dropout_rate=1.0), r'expert_dropout_rate is 1.0; a rate must be at least 0 and less than 1'),
    (dict(sample_temperature=0.0), r'sample_temperature is 0.0; it must be greater than 0'),
  ],
)
def test_impossible_experts_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    MoeConfig(**{'num_experts': 4, **fields})


@pytest.mark.parametrize('pattern', [5, (1, 4)])
def test_layers_that_do_not_exist_are_refused(pattern):
  with pytest.raises(ConfigError, match='the encoder has 4 layers'):
    dataclasses.replace(MODEL, moe=MoeConfig(num_experts=4, encoder_layers=pattern))


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: DataConfig(mixture_or_task_name='t', feature_lengths={'inputs': 8}, batch_size=8), 'exactly these'),
    (lambda: dataclasses.replace(DATA, num_data_shards=3), 'use a divisor of 8'),
    (lambda: MeshConfig(data=-1, model=-1), 'only one axis may be -1'),
    (lambda: OptimizerConfig(schedule='linear'), 'a linear decay needs its last step'),
    (lambda: RunConfig(model_dir='', model=MODEL, data=DATA, train_steps=1, random_seed=0), 'set --gin.MODEL_DIR'),
    (lambda: RunConfig(model_dir='x', model=None, data=DATA, train_steps=1, random_seed=0), 'a config.ModelConfig'),
    (lambda: RunConfig(model_dir='x', model=MODEL, data=DATA, train_steps=1, random_seed=None), 'an integer'),
  ],
)
def test_impossible_runs_are_refused(make, message):
  with pytest.raises(ConfigError, match=message):
    make()


def test_patterns_select_layers():
  model = dataclasses.replace(MODEL, moe=MoeConfig(num_experts=4, encoder_layers=2, decoder_layers=(0, 3)))
  assert model.switch_layers('encoder') == (1, 3)
  assert model.switch_layers('decoder') == (0, 3)
  every = dataclasses.replace(MODEL, moe=MoeConfig(num_experts=4, encoder_layers=1, decoder_layers=()))
  assert every.switch_layers('encoder') == (0, 1, 2, 3)
  assert every.switch_layers('decoder') == ()


@pytest.mark.parametrize(
  ('said', 'line'),
  [
    ('\nno such file\nat line 3', 'no such file'),
    ('', 'OSError'),
    ('x' * 301, 'x' * 300 + '...'),
    ("Error opening 'a' and 'b': No space left on device [os_error_code='28'] [source ...]", 'No space left on device'),
  ],
)
def test_first_line_of_an_error(said, line):
  assert first_line(OSError(said)) == line


def test_json_round_trip():
  model = dataclasses.replace(MODEL, moe=MoeConfig(num_experts=4, encoder_layers=[1], train_capacity_factor=1))
  run = RunConfig(model_dir='x', model=model, data=DATA, train_steps=1, random_seed=0)
  assert RunConfig.from_json(run.to_json()) == run
  with pytest.raises(ConfigError, match=r"no field 'num_expert'\. Did you mean 'num_experts'"):
    MoeConfig.from_json({'num_expert': 4})


def test_identity_leaves_out_what_may_change():
  run = RunConfig(model_dir='x', model=MODEL, data=DATA, train_steps=1, random_seed=0)
  longer = dataclasses.replace(run, model_dir='y', train_steps=9, eval_period=3, mesh=MeshConfig(data=1, model=-1))
  assert longer.identity() == run.identity()
  for other in (
    dataclasses.replace(run, random_seed=1),
    dataclasses.replace(run, data=dataclasses.replace(DATA, batch_size=16)),
    dataclasses.replace(run, model=dataclasses.replace(MODEL, emb_dim=64)),
    dataclasses.replace(run, optimizer=OptimizerConfig(learning_rate=0.5)),
  ):
    assert other.identity() != run.identity()
