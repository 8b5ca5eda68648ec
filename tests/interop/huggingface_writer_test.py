"""Hugging Face checkpoints that we write: parameters come back bit for bit; models that have no class are refused."""

import dataclasses
import itertools

import numpy as np
import pytest
from safetensors.numpy import load_file

from switch_jax import interop
from switch_jax.config import ConfigError, ModelConfig, MoeConfig
from switch_jax.inference import compute_logits
from switch_jax.interop import huggingface_writer
from tests.interop.own_checkpoints import ATTENTION, MODELS, SIZES, assert_same, refused, run, save_own, state_of


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


# Of one stack: its layers, those with experts, and what config.json must say (their true number, the step).
STACKS = [
  (1, (), 0, 0),
  (1, (0,), 1, 1),
  (2, (1,), 1, 2),
  (2, (0, 1), 2, 1),
  (3, (), 0, 0),
  (5, (1, 3), 2, 2),
  (5, (1, 4), 2, 3),  # 5 // 2 is 2
  (6, (1,), 1, 6),
  (7, (1, 5), 2, 4),
  (12, (1, 3, 5, 7, 9, 11), 6, 2),
]


def stacks_model(encoder, decoder):
  """Returns a model of such stacks."""
  sizes = SIZES | dict(num_encoder_layers=encoder[0], num_decoder_layers=decoder[0])
  moe = MoeConfig(num_experts=3, encoder_layers=encoder[1], decoder_layers=decoder[1], padding_takes_slots=True)
  return ModelConfig(**sizes, moe=dataclasses.replace(moe, sequences_per_group=1, train_capacity_factor=None))


@pytest.mark.parametrize('stack', STACKS)
def test_true_numbers_of_sparse_layers(stack):
  """transformers 5 puts experts into layer 1 where the number is 0; the step, which it writes too, is what counts."""
  content = huggingface_writer.to_config(stacks_model(stack, (2, (1,))))
  assert (content['num_sparse_encoder_layers'], content['encoder_sparse_step']) == stack[2:]
  assert (content['num_sparse_decoder_layers'], content['decoder_sparse_step']) == (1, 2)
  content = huggingface_writer.to_config(stacks_model((2, (0, 1)), stack))
  assert (content['num_sparse_decoder_layers'], content['decoder_sparse_step']) == stack[2:]


def test_switch_layers_nowhere_is_a_t5():
  content = huggingface_writer.to_config(stacks_model((1, ()), (3, ())))
  assert content['model_type'] == 't5'
  assert not any('sparse' in name or 'expert' in name for name in content)


@pytest.mark.parametrize('activation', ['relu', 'gelu', 'silu', 'linear'])
@pytest.mark.parametrize('gate', [(), ('linear',)])
def test_every_activation_comes_back(tmp_path, activation, gate):
  config = dataclasses.replace(MODELS['dense'], mlp_activations=(activation, *gate))
  save_own(tmp_path / 'ours', config, with_optimizer=False)
  assert run(f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/theirs') == 0
  again, _ = interop.load('huggingface', tmp_path / 'theirs')
  assert again.mlp_activations == config.mlp_activations


# Each stack as encoder and as decoder; two stacks without experts are a T5.
PAIRS = [*itertools.pairwise(STACKS), (STACKS[-1], STACKS[0]), (STACKS[0], STACKS[4])]


@pytest.mark.parametrize(('encoder', 'decoder'), PAIRS[-4:])
def test_every_pair_of_stacks_comes_back(tmp_path, encoder, decoder):
  config = stacks_model(encoder, decoder)
  save_own(tmp_path / 'ours', config, with_optimizer=False)
  assert run(f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/theirs') == 0
  again, params = interop.load('huggingface', tmp_path / 'theirs')
  assert [again.switch_layers(stack) for stack in ('encoder', 'decoder')] == [encoder[1], decoder[1]]
  assert_same(params, state_of(tmp_path / 'ours')['params'])


@pytest.mark.parametrize(('encoder', 'decoder'), PAIRS)
def test_transformers_loads_them_with_our_logits(tmp_path, encoder, decoder):
  torch = pytest.importorskip('torch', reason='transformers is not installed')
  transformers = pytest.importorskip('transformers', reason='transformers is not installed')
  config = stacks_model(encoder, decoder)
  save_own(tmp_path / 'ours', config, with_optimizer=False)
  assert run(f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/theirs') == 0
  model, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / 'theirs', output_loading_info=True)
  assert not any(report.values()), report
  inputs, targets = np.random.default_rng(0).integers(1, 11, (2, 3, 9))
  with torch.no_grad():
    logits = model.eval()(
      input_ids=torch.tensor(inputs), decoder_input_ids=torch.tensor(targets), attention_mask=torch.ones((3, 9))
    ).logits
  again, params = interop.load('huggingface', tmp_path / 'theirs')
  ours = np.asarray(compute_logits(again, params, inputs, targets))
  np.testing.assert_allclose(ours, logits.numpy(), rtol=1e-4, atol=1e-4 * np.abs(ours).max())


def refused_by_huggingface(match, config, **of_moe):
  moe = config.moe and dataclasses.replace(config.moe, **of_moe)
  with pytest.raises(ConfigError, match=f'Hugging Face cannot represent this model.*{match}'):
    huggingface_writer.to_config(dataclasses.replace(config, moe=moe))


def test_what_huggingface_cannot_represent(tmp_path, capsys):
  refused_by_huggingface('one input kernel', MODELS['xxl'])
  refused_by_huggingface('only router', MODELS['base'], router='top2')
  refused_by_huggingface('extra_mlp is True: it has no dense network', MODELS['base'], extra_mlp=True)
  refused_by_huggingface('there is one d_ff', MODELS['base'], expert_mlp_dim=9)
  refused_by_huggingface('decoder_layers selects', MODELS['base'], decoder_layers=(0, 1))
  save_own(tmp_path / 'ours', MODELS['xxl'], with_optimizer=False)
  refused(capsys, tmp_path, f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/out', 'wi_0, wi_1')


def test_experts_in_attention_have_no_name_there(tmp_path, capsys):
  save_own(tmp_path / 'ours', ATTENTION['mlp'])
  message = 'MoeConfig.decoder_attention_layers is (1, 3); T5X and Hugging Face have no names for experts in attention.'
  refused(capsys, tmp_path, f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/out', message)
