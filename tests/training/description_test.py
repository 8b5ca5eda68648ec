"""What a run will be, in numbers and in words."""

import dataclasses

import pytest

from switch_jax.config import ConfigError, DataConfig, MeshConfig, ModelConfig, MoeConfig, RunConfig
from switch_jax.parallel import Layout
from switch_jax.training.description import StackRouting, active_parameters, describe, stack_routing

MOE = MoeConfig(num_experts=4, train_capacity_factor=1.25, eval_capacity_factor=None, sequences_per_group=2)
DENSE = ModelConfig(
  vocab_size=32, emb_dim=8, num_heads=4, head_dim=2, mlp_dim=16, num_encoder_layers=2, num_decoder_layers=2
)
FOUR = Layout.without_devices((2, 2, 1))


def run_of(moe=MOE, batch=16, **fields):
  data = DataConfig(mixture_or_task_name='a_task', feature_lengths={'inputs': 16, 'targets': 5}, batch_size=batch)
  model = dataclasses.replace(DENSE, moe=moe)
  return RunConfig(model_dir='/x', model=model, data=data, train_steps=7, random_seed=3, **fields)


def test_routing_of_both_stacks():
  encoder, decoder = stack_routing(run_of(), FOUR)
  assert encoder == StackRouting('encoder', 8, 32, 10, None, 4)
  assert decoder == StackRouting('decoder', 8, 10, 3, None, 4)
  assert encoder.slots_per_token(encoder.train_capacity) == 1.25
  assert decoder.slots_per_token(decoder.train_capacity) == 1.2  # a capacity is whole
  assert encoder.slots_per_token(None) is None


def test_without_rows_of_a_group_it_is_what_a_shard_holds_of_a_microbatch():
  moe = dataclasses.replace(MOE, sequences_per_group=None)
  (encoder, _), (half, _) = (stack_routing(run_of(moe, num_microbatches=parts), FOUR) for parts in (1, 2))
  assert (encoder.groups, encoder.group_tokens) == (4, 4 * 16)
  assert (half.groups, half.group_tokens) == (8, 2 * 16)


def test_a_group_is_what_shares_slots():
  moe = dataclasses.replace(MOE, sequences_per_group=None, dispatch='ragged')
  for parts in (1, 2):
    encoder, decoder = stack_routing(run_of(moe, num_microbatches=parts), FOUR)
    assert (encoder.groups, encoder.group_tokens) == (2 * parts, 8 * 16 // parts)  # rows of a data replica
    assert decoder.train_capacity == 12 // parts


def test_only_stacks_with_experts_are_routed():
  moe = dataclasses.replace(MOE, encoder_layers=(), decoder_layers=(), decoder_attention_layers=1)
  assert [routing.stack for routing in stack_routing(run_of(moe), Layout.without_devices())] == ['decoder']
  assert stack_routing(run_of(None), Layout.without_devices()) == []


# Attention and norms of both stacks, their last norms and tables of relative positions, and the embedding.
ATTENTION, NORM, EMBEDDING = 4 * 8 * 8, 8, 32 * 8
SHARED = 2 * (ATTENTION + 2 * NORM) + 2 * (2 * ATTENTION + 3 * NORM) + 2 * (NORM + 4 * 32) + EMBEDDING
MLP, ROUTER = 2 * 8 * 16, 8 * 4


@pytest.mark.parametrize(
  ('moe', 'expected'),
  [
    (None, SHARED + 4 * MLP),
    (MOE, SHARED + 4 * MLP + 2 * ROUTER),
    (dataclasses.replace(MOE, router='top2'), SHARED + 6 * MLP + 2 * ROUTER),
    (
      dataclasses.replace(
        MOE, router='topk', num_selected_experts=3, bias_update_rate=1e-3, aux_loss_factor=0.0, num_shared_experts=1
      ),
      SHARED + 2 * MLP + 2 * (3 + 1) * MLP + 2 * (ROUTER + 4),
    ),
  ],
  ids=['dense', 'top1', 'top2', 'top3 with biases and a shared expert'],
)
def test_a_token_meets_one_expert_of_a_layer_or_more(moe, expected):
  assert active_parameters(run_of(moe), Layout.single_device()) == expected


def test_description():
  text = describe(run_of(mesh=MeshConfig(data=2, expert=4), num_microbatches=1))
  total = SHARED + 2 * MLP + 2 * 4 * MLP + 2 * ROUTER
  for expected in (
    f'parameters  {total:,} ({SHARED + 4 * MLP + 2 * ROUTER:,} active per token), ',
    'model       2 + 2 layers, emb_dim 8, 4 heads of 2, mlp_dim 16, float32',
    'mesh        data=2, expert=4, model=1 over 8 cpu devices',
    "batch       16 rows of {'inputs': 16, 'targets': 5}, 2 rows a shard\n",
    'task        a_task, 7 steps, seed 3',
    'model_dir   /x',
    'encoder  8 groups of 32 tokens, 4 experts: training capacity 10 = 1.25 slots a token, evaluation drop-free',
  ):
    assert expected in text
  (experts,) = (line.split('  ') for line in text.splitlines() if 'encoder/layers_*/mlp/expert/wi/kernel' in line)
  assert [part.strip() for part in experts if part] == [
    'encoder/layers_*/mlp/expert/wi/kernel', '(4, 8, 16)', "('expert', None, 'model')", 'layers 1'
  ]  # fmt: skip


def test_a_buffer_is_told():
  moe = dataclasses.replace(
    MOE, sequences_per_group=None, dispatch='ragged', train_capacity_factor=None, ragged_buffer_factor=1.5
  )
  line = 'encoder  2 groups of 128 tokens, 4 experts: training with a buffer of 1.5 rows a token, evaluation drop-free'
  assert line in describe(run_of(moe, mesh=MeshConfig(data=2, expert=4)))


def test_a_dense_model_and_what_does_not_divide():
  assert '  none: a dense model' in describe(run_of(None)).splitlines()
  with pytest.raises(ConfigError, match='batch_size is 12'):
    describe(run_of(None, batch=12))
