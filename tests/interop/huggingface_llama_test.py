"""Llama and Mixtral: folders that transformers wrote, folders that we write, and what neither side can hold."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from switch_jax import interop
from switch_jax.config import ConfigError, ModelConfig, UpcycleConfig
from switch_jax.inference import compute_logits
from switch_jax.interop import huggingface_llama, huggingface_writer, stored, upcycling
from switch_jax.interop.loading import open_checkpoint
from switch_jax.model import abstract_parameters
from switch_jax.parallel import Layout
from tests.interop.own_checkpoints import DECODERS, assert_same, refused, run, save_own, state_of

FIXTURES = ('hf_llama_tiny', 'hf_mixtral_tiny')


def logits_of(config, params, tokens):
  return np.asarray(compute_logits(config, params, None, tokens))


# What transformers wrote.


@pytest.mark.parametrize('name', FIXTURES)
def test_logits_and_greedy_texts_are_theirs(checkpoints, name):
  """Heads that share keys and values, and tied logits, in the Llama; a token 0 within a row in both."""
  with np.load(checkpoints / name / 'outputs.npz') as outputs:
    tokens, expected, greedy = (outputs[key] for key in ('decoder_input_tokens', 'logits', 'greedy'))
  config, params = interop.load('huggingface', checkpoints / name)
  logits = logits_of(config, params, np.concatenate([tokens, greedy[:, :-1]], axis=1))
  length = tokens.shape[1]
  np.testing.assert_allclose(logits[:, :length], expected, rtol=0, atol=1e-4)
  np.testing.assert_array_equal(logits[:, length - 1 :, 2:].argmax(-1) + 2, greedy)  # 0 and 1 were suppressed


def test_configurations(checkpoints):
  llama, mixtral = (interop.load_config('huggingface', checkpoints / name) for name in FIXTURES)
  sizes = dict(vocab_size=48, emb_dim=16, num_heads=4, head_dim=4, mlp_dim=24, num_encoder_layers=0)
  fixed = dict(num_decoder_layers=2, positions='rotary', mlp_activations=('silu', 'linear'), init='released')
  untied = dict(logits_via_embedding=False)
  assert llama == ModelConfig(**sizes, **fixed, **untied, rotary_base=500.0, init_scale=1.0)
  assert dataclasses.replace(mixtral, moe=None, mask_padding_queries=True, init_scale=1.0, rotary_base=500.0) == llama
  moe = mixtral.moe
  assert (mixtral.rotary_base, moe.num_experts, moe.router, moe.num_selected_experts) == (1e6, 4, 'topk', 2)
  assert (moe.decoder_layers, moe.normalize_gates, moe.explores, moe.aux_loss_factor) == (1, True, 'argmax', 0.001)
  assert (moe.train_capacity_factor, moe.eval_capacity_factor, moe.expert_capacity) == (None, None, None)
  changed = interop.load_config('huggingface', checkpoints / FIXTURES[1], rotary_base=9.0, train_capacity_factor=1.5)
  assert (changed.rotary_base, changed.moe.train_capacity_factor) == (9.0, 1.5)


@pytest.mark.parametrize('name', FIXTURES)
def test_written_as_they_were(checkpoints, tmp_path, name):
  """Every name and array, but heads of keys and values that were shared, and a table of its own for the logits."""
  assert run(f'huggingface:{checkpoints}/{name}', f'huggingface:{tmp_path}/again', '--max_shard_bytes=9000') == 0
  theirs = load_file(checkpoints / name / 'model.safetensors')
  theirs.setdefault('lm_head.weight', theirs['model.embed_tokens.weight'])
  ours = {}
  for file in (tmp_path / 'again').glob('*.safetensors'):
    ours |= load_file(file)
  assert ours.keys() == theirs.keys()
  for key, array in theirs.items():
    if '.k_proj.' in key or '.v_proj.' in key:
      array = array.reshape(-1, 4, 16).repeat(16 // len(array), axis=0).reshape(16, 16)
    np.testing.assert_array_equal(ours[key], array, err_msg=key, strict=True)
  config, again = (json.loads((path / 'config.json').read_text()) for path in (checkpoints / name, tmp_path / 'again'))
  differ = {key for key in config if config[key] != again.get(key, config[key])}
  assert differ <= {'num_key_value_heads', 'tie_word_embeddings', 'max_position_embeddings', 'head_dim'}
  assert again['head_dim'] == 4
  assert again['num_key_value_heads'] == 4


@pytest.mark.parametrize('scan_layers', [False, True])
def test_a_run_begins_with_them(checkpoints, scan_layers):
  folder = checkpoints / 'hf_mixtral_tiny'
  config, params = interop.load('huggingface', folder, scan_layers=scan_layers)
  begun = interop.initial_parameters(str(folder), config, abstract_parameters(config, Layout.single_device()))
  jax.tree.map(np.testing.assert_array_equal, begun, params)
  other = dataclasses.replace(config, rotary_base=5.0)
  with pytest.raises(ConfigError, match=r'rotary_base is 5\.0, and .* was trained with 1000000\.0'):
    interop.initial_parameters(str(folder), other, abstract_parameters(other, Layout.single_device()))


def test_experts_are_made_of_a_llama(checkpoints):
  checkpoint = open_checkpoint('huggingface', checkpoints / 'hf_llama_tiny')
  config = upcycling.target_config(checkpoint, {'num_experts': 2, 'decoder_layers': 1, 'router': 'topk'})
  made = upcycling.upcycle(checkpoint, config, UpcycleConfig(compensate_gate=False)).arrays
  dense = checkpoint.arrays['decoder/layers_1/mlp/wi_1/kernel'].read()
  np.testing.assert_array_equal(made['decoder/layers_1/mlp/expert/wi_1/kernel'].read(), [dense, dense])


# What we write.


@pytest.mark.parametrize('name', DECODERS)
def test_ours_there_and_back(tmp_path, capsys, name):
  config = DECODERS[name]
  save_own(tmp_path / 'ours', config, with_optimizer=False)
  assert run(f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/theirs') == 0
  assert ('capacities are not written' in capsys.readouterr().out) == bool(config.moe)
  assert json.loads((tmp_path / 'theirs' / 'config.json').read_text())['model_type'] == name
  params = state_of(tmp_path / 'ours')['params']
  tensors = load_file(tmp_path / 'theirs' / 'model.safetensors')
  table = params['token_embedder']['embedding']
  np.testing.assert_array_equal(tensors['lm_head.weight'], table * np.float32(10**-0.5))
  query = params['decoder']['layers_1']['self_attention']['query']['kernel']
  np.testing.assert_array_equal(tensors['model.layers.1.self_attn.q_proj.weight'], 2 * query.T)
  again, loaded = interop.load('huggingface', tmp_path / 'theirs')
  assert again.logits_via_embedding is False
  params['decoder']['logits_dense'] = {'kernel': table.T * np.float32(10**-0.5)}
  assert_same(loaded, params)


@pytest.mark.parametrize('name', DECODERS)
def test_transformers_loads_them_with_our_logits(tmp_path, name):
  torch = pytest.importorskip('torch', reason='transformers is not installed')
  transformers = pytest.importorskip('transformers', reason='transformers is not installed')
  save_own(tmp_path / 'ours', DECODERS[name], with_optimizer=False)
  assert run(f'switch_jax:{tmp_path}/ours', f'huggingface:{tmp_path}/theirs') == 0
  model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'theirs', output_loading_info=True)
  assert not any(report.values()), report
  tokens = np.random.default_rng(0).integers(1, 11, (2, 5))
  with torch.no_grad():
    theirs = model.eval()(input_ids=torch.tensor(tokens), attention_mask=torch.ones((2, 5))).logits.numpy()
  ours = logits_of(DECODERS[name], state_of(tmp_path / 'ours')['params'], tokens)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(ours).max())


@pytest.mark.parametrize(
  ('fields', 'of_moe', 'match'),
  [
    ({'positions': 'relative_bias'}, {}, "positions is 'relative_bias': in Llama and Mixtral positions are rotary"),
    ({'prefix_lm': True}, {}, 'prefix_lm is True: in Llama and Mixtral every token sees those before it alone'),
    ({'mlp_activations': ('relu',)}, {}, 'there are two, the second linear'),
    ({'mlp_activations': ('silu', 'silu')}, {}, 'there are two, the second linear'),
    ({}, {'decoder_layers': 2}, r'decoder_layers selects \(1,\) of 2: there are experts in all layers'),
    ({}, {'router': 'top1'}, "router is 'top1': in Mixtral it is 'topk'"),
    ({}, {'router_scores': 'sigmoid'}, "router_scores is 'sigmoid': in Mixtral it is 'softmax'"),
    ({}, {'normalize_gates': False}, 'normalize_gates is False: in Mixtral it is True'),
    ({}, {'gate_scale': 2.5}, 'gate_scale is 2.5: in Mixtral it is 1.0'),
    ({}, {'bias_update_rate': 1e-3, 'aux_loss_factor': 0.0}, 'bias_update_rate is 0.001: in Mixtral it is None'),
    ({}, {'num_shared_experts': 1}, 'num_shared_experts is 1: in Mixtral it is 0'),
    ({}, {'extra_mlp': True}, 'extra_mlp is True: in Mixtral it is False'),
    ({}, {'router_dtype': 'bfloat16'}, "router_dtype is 'bfloat16': in Mixtral it is 'float32'"),
    ({'moe': None, 'num_heads': 3}, {}, 'num_heads is 3: Llama wants a divisor of emb_dim, which is 10'),
  ],
)
def test_what_they_cannot_represent(fields, of_moe, match):
  config = DECODERS['mixtral']
  fields = {'moe': dataclasses.replace(config.moe, **of_moe)} | fields
  with pytest.raises(ConfigError, match=f'Hugging Face cannot represent this model.*{match}.*Convert it to switch_jax'):
    huggingface_writer.to_config(dataclasses.replace(config, **fields))


def test_t5x_has_no_such_models(tmp_path, capsys):
  save_own(tmp_path / 'ours', DECODERS['llama'], with_optimizer=False)
  message = 'ModelConfig.num_encoder_layers is 0; the T5 of T5X and Hugging Face has an encoder'
  refused(capsys, tmp_path, f'switch_jax:{tmp_path}/ours', f't5x:{tmp_path}/out', message)


# What users get wrong, or have and we have not.


@pytest.fixture
def folder(checkpoints, tmp_path):
  """Returns copies of the recorded folders with other settings in config.json; None takes one away."""

  def copy(name, **settings):
    path = shutil.copytree(checkpoints / name, tmp_path / 'copy', dirs_exist_ok=True)
    content = json.loads((checkpoints / name / 'config.json').read_text()) | settings
    content = {key: value for key, value in content.items() if value != 'away'}
    (path / 'config.json').write_text(json.dumps(content))
    return path

  return copy


LLAMA3 = {'rope_theta': 5e5, 'rope_type': 'llama3', 'factor': 8.0}
YARN = {'type': 'yarn', 'factor': 4.0}


@pytest.mark.parametrize(
  ('name', 'settings', 'match'),
  [
    ('llama', {'rope_parameters': LLAMA3}, r"rotary positions \(rope_scaling of the type 'llama3'\), which no model"),
    ('llama', {'rope_parameters': 'away', 'rope_scaling': YARN}, "rope_scaling of the type 'yarn'"),
    ('llama', {'rope_parameters': {'partial_rotary_factor': 0.5}}, 'turns a part of each head only'),
    ('llama', {'attention_bias': True}, r'has biases \(attention_bias\), which no model here has'),
    ('llama', {'mlp_bias': True}, r'has biases \(mlp_bias\)'),
    ('mixtral', {'sliding_window': 32}, r'attends to the last 32 tokens only \(sliding_window\)'),
    ('llama', {'num_key_value_heads': 3}, 'num_key_value_heads is 3; it must be a divisor of num_attention_heads'),
    ('llama', {'num_key_value_heads': 4}, r'self_attention/key/kernel \(16, 8\) instead of \(16, 16\)'),
    ('llama', {'num_attention_heads': 8}, r'says num_heads \* head_dim = 32, but the shapes of its tensors say 16'),
    ('llama', {'vocab_size': 40}, 'says vocab_size = 40, but the shapes of its tensors say 48'),
    ('llama', {'num_hidden_layers': 2**40}, 'says num_decoder_layers = 1099511627776, but .* say 2'),
    ('mixtral', {'num_local_experts': 8}, 'says num_experts = 8, but the shapes of its tensors say 4'),
    ('mixtral', {'num_experts_per_tok': 5}, 'num_selected_experts is 5; there are only 4 experts'),
    ('mixtral', {'model_type': 'llama'}, 'lacks parameters decoder/layers_0/mlp/wi_0/kernel'),
    ('llama', {'model_type': 'mixtral'}, 'lacks parameters decoder/layers_0/mlp/expert/wi_0/kernel'),
    ('llama', {'tie_word_embeddings': False}, 'lacks lm_head.weight, and its config.json does not tie it'),
    ('mixtral', {'tie_word_embeddings': True}, 'lm_head.weight of .* differs from model.embed_tokens.weight'),
    ('llama', {'hidden_act': 'gelu'}, "activation of config.json is 'gelu'.*mlp_activations=.'gelu', 'linear'. would"),
    ('llama', {'hidden_size': 'away'}, 'has no hidden_size'),
  ],
)
def test_folders_that_are_refused(folder, name, settings, match):
  with pytest.raises(ConfigError, match=match) as caught:
    interop.load('huggingface', folder(f'hf_{name}_tiny', **settings))
  assert '\n' not in str(caught.value)


def test_older_files(folder):
  """Versions before 5 write the base beside `rope_scaling`; some wrote buffers too."""
  settings = {'rope_parameters': 'away', 'rope_theta': 250, 'rope_scaling': None, 'head_dim': None}
  path = folder('hf_llama_tiny', **settings, sliding_window=None, pad_token_id=None)
  tensors = load_file(path / 'model.safetensors')
  save_file(tensors | {'model.layers.1.self_attn.rotary_emb.inv_freq': np.ones(2, 'f4')}, path / 'model.safetensors')
  assert interop.load_config('huggingface', path).rotary_base == 250.0
  path = folder('hf_mixtral_tiny', sliding_window=64, router_jitter_noise=0.25)
  moe = interop.load_config('huggingface', path).moe
  assert (moe.explores, moe.jitter_noise) == ('input_jitter', 0.25)
  with pytest.raises(ConfigError, match='is a dense Llama, without experts; num_experts'):
    interop.load_config('huggingface', folder('hf_llama_tiny'), num_experts=2)


def test_parts_of_repeated_heads():
  """Whatever box is read, it is that of the repeated kernel."""
  kernel = np.arange(48.0, dtype=np.float32).reshape(4, 12)
  array = huggingface_llama._repeated(stored.in_memory(kernel), 3, 2)
  whole = kernel.reshape(4, 4, 3).repeat(2, axis=1).reshape(4, 24)
  for first, last in ((0, 24), (5, 7), (2, 4), (23, 24), (8, 8)):
    np.testing.assert_array_equal(array.read((slice(1, 3), slice(first, last))), whole[1:3, first:last])
