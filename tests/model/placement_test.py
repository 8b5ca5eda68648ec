"""The layout of a run, and what does not divide over it."""

import dataclasses

import jax
import pytest

from switch_jax.config import ConfigError, DataConfig, MeshConfig, ModelConfig, MoeConfig, RunConfig
from switch_jax.model.placement import check_batch, make_layout

DENSE = ModelConfig(
  vocab_size=32, emb_dim=16, num_heads=8, head_dim=2, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2
)


def run_of(batch=16, microbatches=1, model=DENSE, mesh=None, **moe):
  if moe:
    model = dataclasses.replace(model, moe=MoeConfig(**{'num_experts': 4} | moe))
  data = DataConfig(mixture_or_task_name='none', feature_lengths={'inputs': 4, 'targets': 4}, batch_size=batch)
  return RunConfig(
    model_dir='none', model=model, data=data, train_steps=1, random_seed=0, num_microbatches=microbatches,
    mesh=mesh or MeshConfig(),
  )  # fmt: skip


def sizes(run, **options):
  return tuple(make_layout(run, **options).mesh.shape.values())


def test_experts_decide_the_expert_axis():
  assert sizes(run_of()) == (8, 1, 1)
  assert sizes(run_of(num_experts=4)) == (2, 4, 1)
  assert sizes(run_of(num_experts=4), devices=jax.devices()[:2]) == (1, 2, 1)


def test_other_models_must_divide_too():
  teacher = dataclasses.replace(DENSE, moe=MoeConfig(num_experts=6))
  assert sizes(run_of(num_experts=4), others=[teacher]) == (4, 2, 1)
  assert sizes(run_of(), others=[teacher]) == (4, 2, 1)
  with pytest.raises(ConfigError, match='36'):
    make_layout(run_of(mesh=MeshConfig(model=8)), others=[dataclasses.replace(DENSE, mlp_dim=36)])


@pytest.mark.parametrize(
  ('run', 'message'),
  [
    (run_of(batch=12), r'batch_size is 12, which the 8 \(data, expert\) shards .* use a multiple of 8\.'),
    (run_of(microbatches=4), r'num_microbatches is 4, but each of the 8 .* holds 2 rows, .* use a divisor of 2\.'),
    (
      run_of(batch=32, microbatches=4, sequences_per_group=2),
      r'must divide into 4 parts in whole groups of 2 rows, so that no row moves; use a divisor of 2\.',
    ),
    (run_of(sequences_per_group=4), r'sequences_per_group is 4, but each of the 8 .* so it must divide 2\.'),
    (
      run_of(num_experts=4, expert_mlp_dim=18, mesh=MeshConfig(model=4, rules={'expert_mlp': None})),
      r'MoeConfig\.expert_mlp_dim is 18, which the model axis of 4 devices does not divide',
    ),
    (
      run_of(mesh=MeshConfig(model=8, rules={'length': 'model', 'activation_vocab': None})),
      r"rows of the encoder have 4 positions, which the layout rule of 'length' splits over 8 .* multiple of 8",
    ),
  ],
)
def test_what_does_not_divide(run, message):
  with pytest.raises(ConfigError, match=message):
    make_layout(run)


def test_a_batch_that_divides():
  layout = make_layout(run_of(num_experts=4))
  check_batch(run_of(batch=32, microbatches=2, sequences_per_group=2), layout)
