"""Hugging Face checkpoints: what transformers wrote itself, shards and dtypes, and what users get wrong."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from switch_jax import interop
from switch_jax.config import ConfigError

ROUTER = 'encoder.block.1.layer.1.mlp.router.classifier'
EXPERT = 'encoder.block.1.layer.1.mlp.experts.expert_1.wi.weight'


def replace(config, moe=(), **fields):
  """Returns a configuration with other values, those of its `MoeConfig` as a dictionary."""
  return dataclasses.replace(config, **fields, moe=config.moe and dataclasses.replace(config.moe, **dict(moe)))


@pytest.fixture
def written(tmp_path, sparse_model, random_params, write_huggingface):
  """A small checkpoint to damage."""
  return write_huggingface(tmp_path / 'model', random_params(sparse_model), sparse_model)


def test_checkpoint_written_by_transformers(checkpoints, flatten):
  config, params = interop.load('huggingface', checkpoints / 'hf_switch_tiny')
  sizes = (config.vocab_size, config.emb_dim, config.num_heads, config.head_dim, config.mlp_dim)
  assert sizes == (384, 32, 4, 8, 64)
  assert (config.num_encoder_layers, config.num_decoder_layers) == (4, 4)
  assert (config.mlp_activations, config.logits_via_embedding, config.init) == (('relu',), True, 'released')
  assert (config.dropout_rate, config.mask_padding_queries) == (0.1, False)
  moe = config.moe
  assert (moe.num_experts, moe.encoder_layers, moe.decoder_layers) == (4, 2, 2)
  assert (moe.expert_capacity, moe.sequences_per_group, moe.padding_takes_slots) == (64, 1, True)
  assert (moe.jitter_noise, moe.aux_loss_factor, moe.router_z_loss_factor) == (0.01, 0.001, 0.001)
  assert (moe.expert_dropout_rate, moe.router_dtype) == (0.1, 'float32')
  flat = flatten(params)
  assert {name: array.shape for name, array in flat.items()} == interop.parameter_shapes(config)
  for array in flat.values():
    assert type(array) is np.ndarray
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert array.flags.writeable
  tensors = load_file(checkpoints / 'hf_switch_tiny' / 'model.safetensors')
  np.testing.assert_array_equal(flat['encoder/layers_1/mlp/expert/wi/kernel'][1], tensors[EXPERT].T)


def test_other_checkpoints_written_by_transformers(checkpoints):
  config = interop.load_config('huggingface', checkpoints / 'hf_switch_every_third')
  assert (config.moe.encoder_layers, config.moe.decoder_layers) == ((1, 4), (1,))  # i % 3 == 1, i % 5 == 1
  config = interop.load_config('huggingface', checkpoints / 'hf_switch_untied_bf16_shards')
  assert (config.moe.encoder_layers, config.moe.decoder_layers) == (1, 1)
  assert (config.mlp_activations, config.logits_via_embedding) == (('gelu',), False)
  assert (config.relpos_num_buckets, config.relpos_max_distance) == (16, 12)


def assert_loads(folder, expected, flatten):
  config, params = interop.load('huggingface', folder)
  flat = flatten(params)
  assert flat.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(flat[name], array, strict=True)
  return config


@pytest.mark.parametrize('shards', [None, 3])
@pytest.mark.parametrize('variant', ['sparse', 'XXL', 'C', 'dense', 'dense, version 1.1'])
def test_round_trip(tmp_path, sparse_model, random_params, write_huggingface, flatten, variant, shards):
  untied = dict(logits_via_embedding=False)
  model, settings = {
    'sparse': (sparse_model, {}),
    'XXL': (
      replace(sparse_model, mlp_activations=('gelu', 'linear'), **untied, moe={'num_experts': 8}),
      {'dense_act_fn': 'gated-gelu'},
    ),
    'C': (replace(sparse_model, **untied, moe={'encoder_layers': 1, 'decoder_layers': 1}), {}),
    'dense': (_dense(sparse_model), {'feed_forward_proj': 'relu'}),
    'dense, version 1.1': (
      _dense(replace(sparse_model, mlp_activations=('gelu', 'linear'), **untied)),
      {'feed_forward_proj': 'gated-gelu'},
    ),
  }[variant]
  params = random_params(model)
  config = assert_loads(write_huggingface(tmp_path / 'm', params, model, shards=shards, **settings), params, flatten)
  assert interop.parameter_shapes(config) == interop.parameter_shapes(model)
  assert config.mlp_activations == model.mlp_activations
  if model.moe:
    assert config.moe.expert_capacity == 5
    assert (config.moe.encoder_layers, config.moe.decoder_layers) == (
      model.moe.encoder_layers,
      model.moe.decoder_layers,
    )
  else:
    assert config.moe is None


def _dense(config):
  return dataclasses.replace(config, moe=None)


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
def test_short_floats_are_exact(tmp_path, sparse_model, random_params, write_huggingface, flatten, dtype):
  stored = {name: array.astype(dtype) for name, array in random_params(sparse_model).items()}
  expected = {name: array.astype(np.float32) for name, array in stored.items()}
  assert_loads(write_huggingface(tmp_path / 'm', stored, sparse_model), expected, flatten)


def test_dense_names_of_t5(written, tmp_path, sparse_model, random_params, write_huggingface, flatten):
  """T5 calls the feed-forward network DenseReluDense, and old files hold copies and a bias that nothing uses."""
  model = _dense(sparse_model)
  params = random_params(model)
  folder = write_huggingface(tmp_path / 'm', params, model)
  tensors = {
    name.replace('.mlp.', '.DenseReluDense.'): t for name, t in load_file(folder / 'model.safetensors').items()
  }
  for copy in ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight', 'lm_head.weight'):
    tensors[copy] = params['token_embedder/embedding']
  tensors['decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'] = np.ones((32, 2), np.float32)
  save_file(tensors, folder / 'model.safetensors')
  assert_loads(folder, params, flatten)


def test_tied_but_not_scaled(tmp_path, sparse_model, random_params, write_huggingface):
  """As transformers 5 writes a T5 1.1 whose tables it tied: the same as a table of its own."""
  model = _dense(sparse_model)
  params = random_params(model)
  folder = write_huggingface(tmp_path / 'm', params, model, scale_decoder_outputs=False, tie_word_embeddings=True)
  config, loaded = interop.load('huggingface', folder)
  assert not config.logits_via_embedding
  table = params['token_embedder/embedding']
  np.testing.assert_array_equal(loaded['decoder']['logits_dense']['kernel'], table.T)


def test_tables_of_an_untied_model(tmp_path, sparse_model, random_params, write_huggingface, flatten):
  """Where nothing is tied, the two stacks look up their own tables and the shared one is idle."""
  model = replace(sparse_model, logits_via_embedding=False)
  params = random_params(model)
  table = params['token_embedder/embedding']
  extra = {'encoder.embed_tokens.weight': table, 'decoder.embed_tokens.weight': table, 'shared.weight': table * 0}
  assert_loads(write_huggingface(tmp_path / 'm', params, model, extra=extra), params, flatten)
  extra['decoder.embed_tokens.weight'] = table + 1
  folder = write_huggingface(tmp_path / 'n', params, model, extra=extra)
  fails(folder, 'decoder.embed_tokens.weight of .* differs from encoder.embed_tokens.weight; a model here has one')


@pytest.mark.parametrize(
  ('dense_act_fn', 'activation'),
  [('relu', 'relu'), ('gelu_new', 'gelu'), ('gelu_pytorch_tanh', 'gelu'), ('silu', 'silu'), ('swish', 'silu')],
)
def test_activations(written, dense_act_fn, activation):
  settings(written, dense_act_fn=dense_act_fn)
  assert interop.load_config('huggingface', written).mlp_activations == (activation,)


def test_activation_without_an_equal(written):
  settings(written, dense_act_fn='gelu')
  fails(written, r"the activation of config.json is 'gelu'.*mlp_activations=\('gelu',\) .* tanh approximation")
  assert interop.load_config('huggingface', written, mlp_activations=('gelu',)).mlp_activations == ('gelu',)


def test_capacity(written):
  assert interop.load_config('huggingface', written, expert_capacity=3).moe.expert_capacity == 3
  moe = interop.load_config('huggingface', written, expert_capacity=None, eval_capacity_factor=None).moe
  assert (moe.expert_capacity, moe.eval_capacity_factor) == (None, None)
  fails(written, 'eval_capacity_factor would have no effect.*expert_capacity=None too', eval_capacity_factor=None)


# What users get wrong.


def settings(folder, **fields):
  """Changes config.json; None takes a field away."""
  content = json.loads((folder / 'config.json').read_text()) | fields
  content = {name: value for name, value in content.items() if value is not None}
  (folder / 'config.json').write_text(json.dumps(content))


def tensors(folder, change):
  """Rewrites model.safetensors with what `change` does to it."""
  content = load_file(folder / 'model.safetensors')
  change(content)
  save_file(content, folder / 'model.safetensors')


def fails(path, match, **overrides):
  with pytest.raises(ConfigError, match=match) as caught:
    interop.load('huggingface', path, **overrides)
  assert '\n' not in str(caught.value)


def test_no_such_folder(written):
  fails('models/google/switch-base-8', r'there is no such folder.*or the name of a model on the hub, OWNER/NAME\.')
  fails(written / 'config.json', 'it is a file')


def test_other_folders(tmp_path, checkpoints):
  fails(checkpoints / 't5x_switch_base_tiny', 'has a config.json: it looks like a T5X checkpoint; .* format t5x')
  fails(tmp_path, 'it is empty')


def test_other_models(written):
  settings(written, model_type='switch_transformer')
  fails(written, "of type 'switch_transformer'; .* Did you mean 'switch_transformers'")
  settings(written, model_type=None)
  fails(written, 'of type None; known are')
  settings(written, model_type='switch_transformers', pad_token_id=3)
  fails(written, 'pads with token 3')


def test_damaged_config(written):
  (written / 'config.json').write_text((written / 'config.json').read_text()[:-5])
  fails(written, 'config.json is not valid JSON .* Copy it again')
  (written / 'config.json').write_text('[1, 2]')
  fails(written, 'config.json holds a list')


def test_unknown_and_missing_tensors(written):
  tensors(written, lambda content: content.update({f'{ROUTER}.bias': np.zeros(3, np.float32)}))
  fails(written, rf'no switch_transformers model here has: {ROUTER}.bias\. Routers with a bias')
  tensors(written, lambda content: [content.pop(f'{ROUTER}.{kind}') for kind in ('weight', 'bias')])
  fails(written, 'lacks parameters encoder/layers_1/mlp/router/router_weights/w/kernel;')


def test_experts_that_are_not_alike(written):
  tensors(written, lambda content: content.update({EXPERT: content[EXPERT][:-1].copy()}))
  fails(written, r'encoder/layers_1/mlp/expert/wi/kernel .* experts of different shapes \[\(6, 10\), \(7, 10\)\]')
  tensors(written, lambda content: content.pop(EXPERT))
  fails(written, r'encoder/layers_1/mlp/expert/wi/kernel .* lacks the experts \[1\]')


def test_last_expert_lost(written):
  last = EXPERT.replace('expert_1', 'expert_2')
  tensors(written, lambda content: content.pop(last))
  fails(written, 'contradict each other')


def test_untied_in_the_weights_only(written, sparse_model):
  head = np.ones((sparse_model.vocab_size, sparse_model.emb_dim), np.float32)
  tensors(written, lambda content: content.update({'lm_head.weight': head}))
  fails(written, 'lm_head.weight of .* set tie_word_embeddings to false')


def test_untied_in_the_config_only(written):
  settings(written, tie_word_embeddings=False)
  fails(written, 'lacks lm_head.weight')


@pytest.mark.parametrize(
  ('field', 'value', 'match'),
  [
    ('num_heads', 3, 'says num_heads = 3, but the shapes of its tensors say 2'),
    ('num_experts', 8, 'says num_experts = 8, but the shapes of its tensors say 3'),
    ('num_decoder_layers', 2, 'says num_decoder_layers = 2, but the shapes of its tensors say 4'),
    ('expert_capacity', 0, 'expert_capacity is 0; it must be'),
    ('expert_capacity', 2.5, 'expert_capacity is 2.5; it must be'),
    ('dropout_rate', 'no', "dropout_rate is 'no'; it must be a number"),
    ('router_dtype', 'float16', "router_dtype of config.json is 'float16'; override it"),
  ],
)
def test_config_that_does_not_fit(written, field, value, match):
  settings(written, **{field: value})
  fails(written, match)


def test_wrong_overrides(written):
  fails(written, "expert_capacities is no field .*Did you mean 'expert_capacity'", expert_capacities=3)
  fails(written, 'MoeConfig.expert_capacity is 0; it must be at least 1', expert_capacity=0)
  fails(written, 'num_experts=4 contradicts the parameters', num_experts=4)
