"""Hugging Face checkpoints that we write: parameters come back bit for bit; models that have no class are refused."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file

from switch_jax import interop
from switch_jax.config import ConfigError
from switch_jax.interop import huggingface_writer
from tests.interop.own_checkpoints import ATTENTION, MODELS, assert_same, refused, run, save_own, state_of


@pytest.mark.parametrize('model', ['base', 'c', 'scanned', 'dense'])
def test_ours_to_huggingface_to_ours(tmp_path, model):
  config = MODELS[model]
  save_own(tmp_path / 'ours', config)
  shards = [] if model == 'base' else ['--max_shard_bytes=3000']
  assert run(f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/theirs', *shards) == 0
  assert (tmp_path / 'theirs' / 'model.safetensors.index.json').exists() == bool(shards)
  scan = [f'--gin.scan_layers={config.scan_layers}']
  assert run(f'huggingface:{tmp_path}/theirs', f'switch_jax:{tmp_path}/again', *scan) == 0
  assert_same(state_of(tmp_path / 'again')['params'], state_of(tmp_path / 'ours')['params'])
  again = interop.load_config('switch_jax', tmp_path / 'again')
  for field in ('vocab_size', 'mlp_activations', 'logits_via_embedding', 'layer_norm_epsilon', 'scan_layers'):
    assert getattr(again, field) == getattr(config, field)


def test_untied_switch_models_have_a_table_for_each_stack(tmp_path):
  """transformers 5.23 ties neither of them to the shared one then, and begins with random numbers where they lack."""
  save_own(tmp_path / 'ours', MODELS['c'], with_optimizer=False)
  assert run(f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/theirs') == 0
  tensors = load_file(tmp_path / 'theirs' / 'model.safetensors')
  for stack in ('encoder', 'decoder'):
    np.testing.assert_array_equal(tensors[f'{stack}.embed_tokens.weight'], tensors['shared.weight'])
  assert not np.array_equal(tensors['lm_head.weight'], tensors['shared.weight'])


def refused_by_huggingface(match, config, **of_moe):
  moe = config.moe and dataclasses.replace(config.moe, **of_moe)
  with pytest.raises(ConfigError, match=f'Hugging Face cannot represent this model.*{match}'):
    huggingface_writer.to_config(dataclasses.replace(config, moe=moe))


def test_what_huggingface_cannot_represent(tmp_path, capsys):
  refused_by_huggingface('one input kernel', MODELS['xxl'])
  refused_by_huggingface('only router', MODELS['base'], router='top2')
  refused_by_huggingface('there is one d_ff', MODELS['base'], expert_mlp_dim=9)
  refused_by_huggingface('decoder_layers selects', MODELS['base'], decoder_layers=(0, 1))
  save_own(tmp_path / 'ours', MODELS['xxl'], with_optimizer=False)
  refused(capsys, tmp_path, f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/out', 'wi_0, wi_1')


def test_experts_in_attention_have_no_name_there(tmp_path, capsys):
  save_own(tmp_path / 'ours', ATTENTION['mlp'])
  message = 'MoeConfig.decoder_attention_layers is (1, 3); T5X and Hugging Face have no names for experts in attention.'
  refused(capsys, tmp_path, f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/out', message)
