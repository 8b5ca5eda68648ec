"""How a trained model can be used, and how not."""

import pytest

from switch_jax.config import ConfigError, DataConfig, DecodingConfig, EvaluationConfig, PredictionConfig

DATA = DataConfig(mixture_or_task_name='task', feature_lengths={'inputs': 8, 'targets': 4}, batch_size=8)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(top_k=5), "top_k is 5; it is for method 'sample', and the method is 'greedy'"),
    (dict(method='beam', top_p=0.9), "it is for method 'sample', and the method is 'beam'"),
    (dict(temperature=0.5), "it is for method 'sample'"),
    (dict(method='sample', top_p=0.0), 'it must be greater than 0 and at most 1'),
    (dict(num_beams=0), 'it must be at least 1'),
    (dict(length_penalty=-1.0), 'it must be at least 0'),
  ],
)
def test_decoding(fields, message):
  with pytest.raises(ConfigError, match=message):
    DecodingConfig(**fields)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(model_dir=''), 'set --gin.MODEL_DIR='),
    (dict(capacity_factors=()), r'give at least one: \(None,\) drops no token'),
    (dict(capacity_factors=(None, None)), 'name each factor once'),
    (dict(capacity_factors=(-1.0,)), 'a factor must be greater than 0'),
    (dict(step=3, checkpoints='all'), "it goes with checkpoints='latest', and that is 'all'"),
    (dict(poll_seconds=0.0), 'it must be greater than 0'),
    (dict(metrics=('f1',)), 'it must name functions of your own, each once'),
    (dict(metrics=('m:f1', 'm:f1')), 'it must name functions of your own, each once'),
  ],
)
def test_evaluation(fields, message):
  assert EvaluationConfig(model_dir='x', data=DATA, step=3).checkpoints == 'latest'
  with pytest.raises(ConfigError, match=message):
    EvaluationConfig(**{'model_dir': 'x', 'data': DATA, **fields})


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(inputs_key=''), 'inputs_key is .*must not be empty'),
    (dict(vocabulary=''), 'vocabulary is .*must not be empty'),
    (dict(output_file='in'), 'output_file is .*the input file has the same name'),
    (dict(targets_length=0), 'it must be at least 1'),
  ],
)
def test_prediction(fields, message):
  with pytest.raises(ConfigError, match=message):
    PredictionConfig(**{'model_dir': 'x', 'input_file': 'in', 'output_file': 'out', 'batch_size': 8, **fields})
