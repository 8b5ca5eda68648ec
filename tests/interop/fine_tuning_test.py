"""The ordinary recipe begins with an imported checkpoint, on eight emulated devices."""

import pytest

from switch_jax import interop, main
from switch_jax.training.metric_files import read_metrics

RECIPE = [
  '--gin_file=gin/examples/quickstart.gin',
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 16}",
  '--gin.BATCH_SIZE=8',
  '--gin.TRAIN_STEPS=2',
  '--gin.LOG_PERIOD=1',
  '--gin.EVAL_STEPS=1',
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
}


@pytest.mark.parametrize('place', ['t5x:{}/t5x_switch_base_tiny', '{}/hf_switch_tiny'])
def test_fine_tuning(checkpoints, tmp_path, place):
  fields = MODEL | {'mlp_activations': "('relu',)", 'layer_norm_epsilon': 1e-6, 'relpos_max_distance': 128}
  model = [f'--gin.config.ModelConfig.{name}={value}' for name, value in fields.items()]
  initial = place.format(checkpoints)
  flags = ['--gin.NUM_EXPERTS=4', f'--gin.INITIAL_CHECKPOINT_PATH={initial}', f'--gin.MODEL_DIR={tmp_path}/run']
  assert main.main([*RECIPE, *model, *flags]) == 0
  losses = [line['loss'] for line in read_metrics(tmp_path / 'run' / 'train' / 'metrics.jsonl')]
  assert len(losses) == 2
  # The rate is next to nothing, so what is saved is what was imported.
  _, params = interop.load('switch_jax', tmp_path / 'run')
  _, imported = interop.load('t5x' if 't5x' in initial else 'huggingface', initial.removeprefix('t5x:'))
  saved = params['encoder']['layers_1']['mlp']['expert']['wi']['kernel']
  assert abs(saved - imported['encoder']['layers_1']['mlp']['expert']['wi']['kernel']).max() < 1e-20
