"""Metrics of the task during training: what is asked of the evaluator, and the names of what it gives."""

import pytest

from switch_jax import config
from switch_jax.inference import evaluation
from switch_jax.parallel import Layout
from switch_jax.training.task_metrics import open_task_metrics

MODEL = config.ModelConfig(
  vocab_size=16, emb_dim=4, num_heads=2, head_dim=2, mlp_dim=4, num_encoder_layers=1, num_decoder_layers=1,
  moe=config.MoeConfig(num_experts=2, encoder_layers=1, decoder_layers=1, sequences_per_group=1),
)  # fmt: skip


@pytest.mark.parametrize(
  ('found', 'expected'),
  [
    ({'a_task': {'accuracy': 50, 'told': 'no number'}}, {'accuracy': 50}),
    (
      {'one': {'accuracy': 50}, 'two': {'accuracy': 100, 'f1': 30}},
      {'accuracy': 75, 'f1': 30, 'average': 57.5, 'accuracy/one': 50, 'accuracy/two': 100, 'f1/two': 30},
    ),
  ],
)
def test_names(monkeypatch, found, expected):
  asked = []

  class Evaluator:
    def __init__(self, evaluated):
      asked.append(evaluated)

    def evaluate(self, model):
      asked.append(model)
      return found, {}

  monkeypatch.setattr(evaluation, 'TaskEvaluator', Evaluator)
  data = config.DataConfig(mixture_or_task_name='a_task', feature_lengths={'inputs': 4, 'targets': 4}, batch_size=8)
  run = config.RunConfig(model_dir='/x', model=MODEL, data=data, train_steps=9, random_seed=0, eval_steps=3)
  assert open_task_metrics(run, Layout.single_device())({'w': 1}, 5) == expected
  evaluated, model = asked
  assert (evaluated.data, evaluated.num_examples) == (data, 24)
  assert (model.params, model.step) == ({'w': 1}, 5)
  assert (model.config.moe.eval_capacity_factor, model.config.moe.sequences_per_group) == (None, None)
