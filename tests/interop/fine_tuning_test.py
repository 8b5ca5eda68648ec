"""The ordinary recipes begin with imported checkpoints, on eight emulated devices."""

import numpy as np
import pytest

from switch_jax import interop, main
from switch_jax.folders.metric_lines import read_metrics

COMMON = [
  '--gin_file=gin/models/switch_tiny.gin',
  '--gin.MIXTURE_OR_TASK_NAME=docstrings_span_corruption',
  '--gin.config.DataConfig.task_module=switch_jax.tasks.docstrings',
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 16}",
  '--gin.BATCH_SIZE=8',
  '--gin.TRAIN_STEPS=2',
  '--gin.LOG_PERIOD=1',
  '--gin.EVAL_STEPS=1',
  # Next to nothing, so that what is saved is what was imported.
  '--gin.LEARNING_RATE=1e-30',
]
MODEL = {
  'vocab_size': 384,
  'emb_dim': 32,
  'num_heads': 4,
  'head_dim': 8,
  'mlp_dim': 64,
  'num_encoder_layers': 4,
  'num_decoder_layers': 4,
  'logits_via_embedding': True,
  'mlp_activations': "('relu',)",
}


@pytest.mark.parametrize(
  ('recipe', 'place', 'num_experts'),
  [
    ('finetune', 't5x:{}/t5x_switch_base_tiny', 4),
    ('finetune', '{}/hf_switch_tiny', 4),
    ('upcycle', '{}/t5x_switch_base_tiny', 8),
  ],
)
def test_recipes(checkpoints, tmp_path, recipe, place, num_experts):
  model = [f'--gin.config.ModelConfig.{name}={value}' for name, value in MODEL.items()]
  initial = place.format(checkpoints)
  flags = [f'--gin.INITIAL_CHECKPOINT_PATH={initial}', f'--gin.MODEL_DIR={tmp_path}/run']
  flags += [f'--gin_file=gin/runs/{recipe}.gin', f'--gin.NUM_EXPERTS={num_experts}']
  assert main.main([*COMMON, *model, *flags]) == 0
  assert len(read_metrics(tmp_path / 'run' / 'train' / 'metrics.jsonl')) == 2
  _, params = interop.load('switch_jax', tmp_path / 'run')
  _, imported = interop.load('t5x' if 't5x' in initial else 'huggingface', initial.removeprefix('t5x:'))
  wi, old = (tree['encoder']['layers_1']['mlp']['expert']['wi']['kernel'] for tree in (params, imported))
  np.testing.assert_allclose(wi, np.concatenate([old] * (num_experts // 4)), atol=1e-20)
