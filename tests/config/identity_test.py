"""What a MODEL_DIR belongs to: what may change in a run that goes on, and what older versions recorded."""

import dataclasses

from switch_jax.config import MeshConfig, MoeConfig, OptimizerConfig
from switch_jax.config.identity import flatten
from tests.config.run_test import DATA, MODEL, RUN


def test_identity_of_a_run_of_an_older_version():
  """What an older version did not have is there only where it is set."""
  names = {'optimizer.decay_begin', 'optimizer.final_fraction'}
  assert not names & set(RUN.identity())
  optimizer = OptimizerConfig(
    schedule='warmup_stable_decay', warmup_steps=1, decay_begin=2, decay_steps=3, final_fraction=0.1
  )
  assert names <= set(dataclasses.replace(RUN, optimizer=optimizer).identity())


def test_identity_of_a_run_of_a_version_without_decoder_only_models():
  names = {'model.prefix_lm', 'model.positions', 'model.rotary_base', 'data.loss_on_targets_only'}
  assert not names & set(RUN.identity())
  assert not names & set(dataclasses.replace(RUN, model=dataclasses.replace(RUN.model, rotary_base=50.0)).identity())
  model = dataclasses.replace(RUN.model, num_encoder_layers=0, prefix_lm=True, positions='rotary', rotary_base=50.0)
  data = dataclasses.replace(DATA, loss_on_targets_only=False)
  assert names <= set(dataclasses.replace(RUN, model=model, data=data).identity())


def test_identity_leaves_out_what_may_change():
  longer = dataclasses.replace(RUN, model_dir='y', train_steps=9, eval_period=3, mesh=MeshConfig(data=1, model=-1))
  assert longer.identity() == RUN.identity()
  for other in (
    dataclasses.replace(RUN, random_seed=1),
    dataclasses.replace(RUN, data=dataclasses.replace(DATA, batch_size=16)),
    dataclasses.replace(RUN, model=dataclasses.replace(MODEL, emb_dim=64)),
    dataclasses.replace(RUN, optimizer=OptimizerConfig(learning_rate=0.5)),
  ):
    assert other.identity() != RUN.identity()


def test_identity_is_that_of_older_versions_where_nothing_changed():
  """They recorded the defaults of their time, also of what had no effect."""
  for router in ('top1', 'top2'):
    model = dataclasses.replace(MODEL, moe=MoeConfig(num_experts=4, router=router))
    identity = dataclasses.replace(RUN, model=model).identity()
    assert identity['model.moe.exploration'] == 'input_jitter'
    assert identity['model.moe.attention_expert'] == 'linear'
    assert not {'optimizer.factor_experts', 'model.gradient_dtype', 'model.moe.ragged_buffer_factor'} & identity.keys()
    assert not {f'model.moe.{name}' for name in ('num_selected_experts', 'bias_update_rate')} & identity.keys()
  model = dataclasses.replace(MODEL, moe=MoeConfig(num_experts=4, encoder_attention_layers=1, exploration='argmax'))
  changed = dataclasses.replace(RUN, model=model, optimizer=OptimizerConfig(factor_experts='by_size')).identity()
  assert changed['model.moe.exploration'] == 'argmax'
  assert changed['model.moe.attention_expert'] == 'mlp'
  moe = MoeConfig(num_experts=4, bias_update_rate=1e-3, aux_loss_factor=0.0, num_shared_experts=1)
  newer = dataclasses.replace(RUN, model=dataclasses.replace(MODEL, moe=moe)).identity()
  assert newer['model.moe.bias_update_rate'] == 1e-3
  assert newer['model.moe.num_shared_experts'] == 1
  assert changed['optimizer.factor_experts'] == 'by_size'


def test_settings_as_dotted_names():
  assert flatten({'a': {'b': {'c': 1}, 'd': ()}, 'e': None}) == {'a.b.c': 1, 'a.d': (), 'e': None}
