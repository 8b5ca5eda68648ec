"""Impossible experts are refused."""

import pytest

from switch_jax.config import ConfigError, MoeConfig


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
      r"^MoeConfig.router is 'top2'; the dispatch ragged numbers one queue of each expert over all shards, by top1 or "
      r'topk alone; use "top1" or "topk", or set dispatch="slots"\.$',
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
    (
      dict(router='topk', num_selected_experts=5),
      r'^MoeConfig.num_selected_experts is 5; there are only 4 experts to choose from; select at most that many\.$',
    ),
    (dict(router='topk', num_selected_experts=0), r'num_selected_experts is 0; it must be at least 1'),
    (dict(router='topk', exploration='sample'), r"exploration is 'sample'; the router topk does not sample"),
    (
      dict(num_selected_experts=3),
      r'^MoeConfig.num_selected_experts is 3; it is for topk, and the router is top1; use "topk", or leave it 2\.$',
    ),
    (dict(gate_scale=2.5), r'gate_scale is 2.5; it is for topk, and the router is top1; use "topk", or leave it 1.0'),
    (dict(router='topk', gate_scale=0.0), r'gate_scale is 0.0; it must be greater than 0'),
    (
      dict(router='top2', router_scores='sigmoid'),
      r"router_scores is 'sigmoid'; it is for top1 and topk, and the router is top2; .* leave it 'softmax'",
    ),
    (
      dict(router='no_token_left_behind', bias_update_rate=1e-3, aux_loss_factor=0.0),
      r'bias_update_rate is 0.001; it is for top1 and topk, and the router is no_token_left_behind; .* leave it None',
    ),
    (dict(bias_update_rate=0.0, aux_loss_factor=0.0), r'bias_update_rate is 0.0; it must be greater than 0'),
    (
      dict(bias_update_rate=1e-3),
      r'^MoeConfig.aux_loss_factor is 0.01; biases balance the load in place of the loss; set aux_loss_factor=0.0, or '
      r'bias_update_rate=None\.$',
    ),
    (
      dict(bias_update_rate=1e-3, aux_loss_factor=0.0, exploration='sample'),
      r"exploration is 'sample'; with bias_update_rate the choice maximises score and bias; use \"argmax\"",
    ),
    (
      dict(shared_expert_mlp_dim=64),
      r'^MoeConfig.shared_expert_mlp_dim is 64; there are no shared experts that it could be the width of; set '
      r'num_shared_experts, or leave it None\.$',
    ),
    (dict(num_shared_experts=1, shared_expert_mlp_dim=0), r'shared_expert_mlp_dim is 0; it must be at least 1'),
    (dict(num_shared_experts=-1), r'num_shared_experts is -1; it must be at least 0'),
    (
      dict(num_shared_experts=1, encoder_layers=(), decoder_layers=(), encoder_attention_layers=1),
      r'num_shared_experts is 1; it belongs to feed-forward Switch layers, and there are none; leave it 0\.$',
    ),
    (
      dict(extra_mlp=True, encoder_layers=(), decoder_layers=(), encoder_attention_layers=1),
      r'extra_mlp is True; it belongs to feed-forward Switch layers, and there are none; leave it False\.$',
    ),
  ],
)
def test_impossible_experts_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    MoeConfig(**{'num_experts': 4, **fields})


def test_exploration_is_the_default_of_the_router():
  found = {router: MoeConfig(num_experts=4, router=router).explores for router in ('top1', 'top2', 'topk')}
  assert found == {'top1': 'input_jitter', 'top2': 'argmax', 'topk': 'argmax'}
  assert MoeConfig(num_experts=4, router='no_token_left_behind').explores == 'input_jitter'
  assert MoeConfig(num_experts=4, exploration='sample').explores == 'sample'


def test_what_older_versions_recorded_of_top2_is_read():
  recorded = MoeConfig(num_experts=4, router='top2').to_json() | {'exploration': 'input_jitter'}
  assert MoeConfig.from_json(recorded) == MoeConfig(num_experts=4, router='top2')
  assert MoeConfig.from_json(recorded | {'router': 'top1'}).explores == 'input_jitter'


def test_widths_and_choices():
  fine = MoeConfig(num_experts=16, router='topk', num_selected_experts=4, expert_mlp_dim=16, num_shared_experts=2)
  assert (fine.experts_per_token, fine.shared_width(64)) == (4, 32)
  assert MoeConfig(num_experts=4, num_shared_experts=1).shared_width(64) == 64
  assert MoeConfig(num_experts=4, num_shared_experts=3, shared_expert_mlp_dim=8).shared_width(64) == 24
  assert MoeConfig(num_experts=4).shared_width(64) == 0
  assert [MoeConfig(num_experts=4, router=r).experts_per_token for r in ('top1', 'top2', 'topk')] == [1, 2, 2]
