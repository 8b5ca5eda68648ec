"""Products are counted from the configuration."""

import pytest

from switch_jax import gin_files
from switch_jax.parallel import Layout
from switch_jax.plan import flops

CORES = Layout.without_devices((1, 32, 1))


def paper_run(model='switch_base', batch=256, *bindings):
  files = [f'gin/models/{model}.gin', 'gin/runs/pretrain.gin']
  values = ['MODEL_DIR=none', 'MIXTURE_OR_TASK_NAME=none', 'TRAIN_STEPS=1', f'BATCH_SIZE={batch}', *bindings]
  return gin_files.load_run(files, values)[0]


def test_switch_base_on_32_cores():
  """A row of an expert for each token; 3.35e12 with the slots that stay empty."""
  useful, empty = flops.model_flops(paper_run(), CORES) / 32, flops.empty_slot_flops(paper_run(), CORES) / 32
  assert useful + empty == pytest.approx(3.35e12, rel=0.02)
  assert empty == pytest.approx(0.06 * useful, rel=0.3)


def test_dense_model_is_six_times_parameters_times_tokens():
  run = paper_run('t5_base', 256)
  layer = 4 * 768 * 768 + 2 * 768 * 3072
  encoder, decoder = 256 * 512, 256 * 114
  expected = 12 * layer * (encoder + decoder) + 12 * 2 * 768 * 768 * (encoder + decoder) + 768 * 32128 * decoder
  assert flops.model_flops(run, CORES) == 6 * expected


def test_a_decoder_only_model_is_six_times_parameters_times_tokens():
  run = paper_run('t5_base_lm', 256, "TASK_FEATURE_LENGTHS={'targets': 626}")
  layer = 4 * 768 * 768 + 2 * 768 * 3072
  assert flops.model_flops(run, CORES) == 6 * 256 * 626 * (12 * layer + 768 * 32128)
  assert flops.score_flops(run, CORES) == 3 * 256 * 12 * 4 * 768 * 626**2


@pytest.mark.parametrize(
  ('model', 'lengths', 'ratio'),
  [('t5_base', (512, 114), 1.058), ('switch_base', (512, 114), 1.058), ('switch_tiny', (64, 14), 0.946)],
)
def test_a_decoder_of_rows_as_long_as_both_has_the_flops_of_both_stacks(model, lengths, ratio):
  both, row = dict(zip(('inputs', 'targets'), lengths, strict=True)), {'targets': sum(lengths)}
  runs = [paper_run(name, 64, f'TASK_FEATURE_LENGTHS={n}') for name, n in ((model, both), (f'{model}_lm', row))]
  expected, found = (flops.model_flops(run, CORES) for run in runs)
  assert found / expected == pytest.approx(ratio, abs=5e-4)


def test_scores():
  run = paper_run('t5_base', 2)
  pairs = 512 * 512 + 114 * 114 + 114 * 512
  assert flops.score_flops(run, CORES) == 3 * 2 * 12 * 4 * 768 * pairs


def test_experts_are_counted_at_their_effective_capacity():
  one, two = (paper_run('switch_base', 256, f'config.MoeConfig.expert_capacity={c}') for c in (10, 20))
  forward = [flops.forward_flops(run, CORES)['encoder'].experts for run in (one, two)]
  assert forward[0] == 6 * 2 * 2 * 768 * 3072 * 32 * 128 * 10
  assert forward[1] == 2 * forward[0]


def test_experts_in_attention_share_their_hidden_units():
  settings = ('encoder_attention_layers=1', 'encoder_layers=()', 'expert_capacity=10')
  run = paper_run('switch_base', 256, *(f'config.MoeConfig.{setting}' for setting in settings))
  forward = flops.forward_flops(run, CORES)['encoder']
  rows = 32 * 128 * 10
  assert forward.experts == 12 * 2 * 768 * 3072 * 3 * rows  # the input kernel, the query's, and key's and value's
  assert forward.router == 12 * 2 * 768 * 128 * 256 * 512
  assert forward.projections == 12 * 2 * 768 * 768 * 256 * 512
  linear = paper_run('switch_base', 256, *(f'config.MoeConfig.{s}' for s in (*settings, 'attention_expert="linear"')))
  assert flops.forward_flops(linear, CORES)['encoder'].experts == 12 * 2 * 768 * 768 * 2 * rows


def test_slots_beyond_a_row_for_each_token_are_told_apart():
  tokens, row = 256 * 512, 6 * 2 * 2 * 768 * 3072
  found = [
    flops.forward_flops(paper_run('switch_base', 256, f'config.MoeConfig.expert_capacity={c}'), CORES)['encoder']
    for c in (10, 64)
  ]
  assert [stack.empty_slots for stack in found] == [0, row * (32 * 128 * 64 - tokens)]
  assert found[1].useful - found[0].useful == pytest.approx(row * (tokens - 32 * 128 * 10))
  run = paper_run('switch_base', 256, 'config.MoeConfig.expert_capacity=64')
  assert flops.empty_slot_flops(run, CORES) > 3 * found[1].empty_slots


def test_without_dropping_every_token_has_its_choices():
  free = paper_run('moe_base', 256, 'config.MoeConfig.train_capacity_factor=None')
  tokens = 256 * 512
  assert flops.forward_flops(free, CORES)['encoder'].experts == 6 * 2 * 2 * 768 * 3072 * tokens * 2
