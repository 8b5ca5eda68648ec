"""The table with Hugging Face reads the same both ways; what has no name there is refused."""

import dataclasses

import pytest

from switch_jax.config import ConfigError
from switch_jax.interop import parameter_shapes
from switch_jax.interop.names import from_huggingface, require_names, to_huggingface

ROUTER = 'mlp/router/router_weights/w/kernel'


@pytest.mark.parametrize('stack', ['encoder', 'decoder'])
def test_switch_attention_has_no_name_elsewhere(sparse_model, stack):
  require_names(sparse_model)
  moe = dataclasses.replace(sparse_model.moe, **{f'{stack}_attention_layers': (1,)})
  with pytest.raises(ConfigError, match=rf'{stack}_attention_layers is \(1,\).*no names'):
    require_names(dataclasses.replace(sparse_model, moe=moe))


@pytest.mark.parametrize(('field', 'value'), [('num_encoder_layers', 0), ('positions', 'rotary')])
def test_what_is_no_t5_has_no_name_elsewhere(sparse_model, field, value):
  model = dataclasses.replace(sparse_model, moe=None, head_dim=4, **{field: value})
  with pytest.raises(ConfigError, match=f'ModelConfig.{field} is .*; the T5 of T5X and Hugging Face has an encoder'):
    require_names(model)


@pytest.mark.parametrize('fields', [{}, {'mlp_activations': ('gelu', 'linear'), 'logits_via_embedding': False}])
def test_table_reads_the_same_both_ways(sparse_model, fields):
  names, seen = parameter_shapes(dataclasses.replace(sparse_model, **fields)), set()
  for name in names:
    expert = 2 if '/expert/' in name else None
    other, transposed = to_huggingface(name, expert)
    assert from_huggingface(other) == (name, expert, transposed)
    assert transposed == (not name.endswith(('scale', 'embedding')) or 'rel_embedding' in name)
    seen.add(other)
  assert len(seen) == len(names)


@pytest.mark.parametrize(
  ('t5x', 'expert', 'huggingface'),
  [
    ('token_embedder/embedding', None, 'shared.weight'),
    ('decoder/relpos_bias/rel_embedding', None, 'decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight'),
    ('decoder/layers_3/encoder_decoder_attention/out/kernel', None, 'decoder.block.3.layer.1.EncDecAttention.o.weight'),
    ('decoder/layers_3/pre_cross_attention_layer_norm/scale', None, 'decoder.block.3.layer.1.layer_norm.weight'),
    ('decoder/layers_11/pre_mlp_layer_norm/scale', None, 'decoder.block.11.layer.2.layer_norm.weight'),
    ('encoder/layers_11/pre_mlp_layer_norm/scale', None, 'encoder.block.11.layer.1.layer_norm.weight'),
    ('encoder/layers_1/mlp/expert/wo/kernel', 127, 'encoder.block.1.layer.1.mlp.experts.expert_127.wo.weight'),
    (f'encoder/layers_1/{ROUTER}', None, 'encoder.block.1.layer.1.mlp.router.classifier.weight'),
    ('encoder/encoder_norm/scale', None, 'encoder.final_layer_norm.weight'),
    ('decoder/logits_dense/kernel', None, 'lm_head.weight'),
  ],
)  # fmt: skip
def test_names_of_the_table(t5x, expert, huggingface):
  assert to_huggingface(t5x, expert)[0] == huggingface
  assert from_huggingface(huggingface)[:2] == (t5x, expert)


def test_unknown_names():
  assert to_huggingface('encoder/layers_0/mlp/extra/kernel') is None
  assert from_huggingface('encoder.block.0.layer.1.mlp.router.classifier.bias') is None
  assert from_huggingface('encoder.block.0.layer.1.DenseReluDense.wo.weight') == (
    'encoder/layers_0/mlp/wo/kernel', None, True,
  )  # fmt: skip
