"""What a run consists of: impossible ones are refused, and which of its settings a MODEL_DIR belongs to."""

import dataclasses

import pytest

from switch_jax.config import (
  CheckpointConfig,
  ConfigError,
  DataConfig,
  HealthConfig,
  ModelConfig,
  MoeConfig,
  OptimizerConfig,
  RunConfig,
  UpcycleConfig,
  flatten,
)

MODEL = ModelConfig(
  vocab_size=384, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=4, num_decoder_layers=4
)
DATA = DataConfig(mixture_or_task_name='task', feature_lengths={'inputs': 8, 'targets': 4}, batch_size=8)
RUN = RunConfig(model_dir='x', model=MODEL, data=DATA, train_steps=1, random_seed=0)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: DataConfig(mixture_or_task_name='t', feature_lengths={'inputs': 8}, batch_size=8), 'exactly these'),
    (lambda: dataclasses.replace(DATA, num_data_shards=3), 'use a divisor of 8'),
    (lambda: OptimizerConfig(schedule='linear'), 'a linear decay needs its last step'),
    (
      lambda: OptimizerConfig(schedule='cosine', decay_steps=9),
      'a cosine decay needs its last step, greater than warmup',
    ),
    (
      lambda: OptimizerConfig(schedule='cosin'),
      "it must be one of .*'cosine', .*module:function.*Did you mean 'cosine'",
    ),
    (
      lambda: OptimizerConfig(name='my.optimizers'),
      "it must be one of 'adafactor', 'adamw', or a function of your own",
    ),
    (
      lambda: OptimizerConfig(schedule='warmup_stable_decay', warmup_steps=3, decay_begin=2, decay_steps=9),
      'decay_begin is 2; it must be from warmup_steps=3 on, and less than decay_steps=9',
    ),
    (lambda: OptimizerConfig(schedule='warmup_stable_decay', decay_steps=20_000), 'decay_begin is None; it must be'),
    (lambda: OptimizerConfig(decay_begin=5), "it is for schedule='warmup_stable_decay'"),
    (lambda: OptimizerConfig(final_fraction=0.1), "the schedule 'rsqrt' does not come down"),
    (lambda: RunConfig(model_dir='', model=MODEL, data=DATA, train_steps=1, random_seed=0), 'set --gin.MODEL_DIR'),
    (lambda: RunConfig(model_dir='x', model=None, data=DATA, train_steps=1, random_seed=0), 'a config.ModelConfig'),
    (lambda: RunConfig(model_dir='x', model=MODEL, data=DATA, train_steps=1, random_seed=None), 'an integer'),
    (lambda: dataclasses.replace(DATA, languages=()), 'each once'),
    (lambda: dataclasses.replace(DATA, languages=('de', 'de')), 'each once'),
    (lambda: dataclasses.replace(DATA, cached_tasks_dir='c'), 'only read with use_cached_tasks=True'),
    (lambda: HealthConfig(divergence_factor=1.0), 'must be greater than 1'),
    (lambda: dataclasses.replace(RUN, num_microbatches=3), 'batch of 8 rows must divide into it'),
    (lambda: dataclasses.replace(RUN, upcycle=UpcycleConfig()), 'set INITIAL_CHECKPOINT_PATH, and a model with exp'),
    (lambda: dataclasses.replace(RUN, checkpoint=CheckpointConfig(keep_best=1), eval_period=7), 'make EVAL_PERIOD a'),
  ],
)
def test_impossible_runs_are_refused(make, message):
  with pytest.raises(ConfigError, match=message):
    make()


def test_json_round_trip():
  model = dataclasses.replace(MODEL, moe=MoeConfig(num_experts=4, encoder_layers=[1], train_capacity_factor=1))
  run = RunConfig(model_dir='x', model=model, data=DATA, train_steps=1, random_seed=0)
  assert RunConfig.from_json(run.to_json()) == run


@pytest.mark.parametrize(
  ('model', 'data', 'message'),
  [
    (
      {},
      dict(feature_lengths={'targets': 8}),
      r"feature_lengths is \{'targets': 8\}, and the model has an encoder, which",
    ),
    (
      dict(num_encoder_layers=0, prefix_lm=True),
      dict(feature_lengths={'targets': 8}),
      r"feature_lengths is \{'targets': 8\}, and ModelConfig.prefix_lm is True, whose prefix is the inputs; give both",
    ),
    ({}, dict(loss_on_targets_only=False), 'loss_on_targets_only is False, and the model has an encoder'),
  ],
)
def test_rows_that_a_model_cannot_have_are_refused(model, data, message):
  fields = dict(model=dataclasses.replace(MODEL, **model), data=dataclasses.replace(DATA, **data))
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(RUN, **fields)


def test_lengths_of_rows():
  assert RUN.row_lengths == {'encoder': DATA.feature_lengths['inputs'], 'decoder': DATA.feature_lengths['targets']}
  decoder = dataclasses.replace(RUN, model=dataclasses.replace(MODEL, num_encoder_layers=0))
  assert decoder.row_lengths == {'decoder': sum(DATA.feature_lengths.values())}
  data = dataclasses.replace(DATA, feature_lengths={'targets': 8}, loss_on_targets_only=False)
  assert dataclasses.replace(decoder, data=data).row_lengths == {'decoder': 8}


def test_groups_of_rows_that_do_not_divide_the_batch_are_refused():
  model = dataclasses.replace(MODEL, moe=MoeConfig(num_experts=4, sequences_per_group=3))
  with pytest.raises(ConfigError, match='sequences_per_group is 3, which does not divide the batch of 8 rows'):
    dataclasses.replace(RUN, model=model)


def test_flatten():
  assert flatten({'a': {'b': 1, 'c': {'d': (2,)}}, 'e': None}) == {'a.b': 1, 'a.c.d': (2,), 'e': None}


def test_rules_that_contradict_the_period():
  with pytest.raises(ConfigError, match='keep_every is 15; only multiples of the period, 10'):
    CheckpointConfig(period=10, keep_every=15)
  with pytest.raises(ConfigError, match='keep is 1; it must be at least 2'):
    CheckpointConfig(keep=1)
