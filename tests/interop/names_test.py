"""Names and shapes agree with the model's own, and the table with Hugging Face reads the same both ways."""

import dataclasses

import jax
import pytest

from switch_jax.config import ConfigError, ModelConfig
from switch_jax.interop import parameter_shapes
from switch_jax.interop.names import from_huggingface, to_huggingface
from switch_jax.model.parameters import abstract_parameters
from switch_jax.parallel import Layout

ROUTER = 'mlp/router/router_weights/w/kernel'


def variants(sparse: ModelConfig) -> dict[str, ModelConfig]:
  """Models that differ in which parameters they have."""
  moe = sparse.moe
  return {
    'sparse': sparse,
    'dense': dataclasses.replace(sparse, moe=None),
    'gated, untied': dataclasses.replace(sparse, mlp_activations=('gelu', 'linear'), logits_via_embedding=False),
    'all layers': dataclasses.replace(sparse, moe=dataclasses.replace(moe, encoder_layers=1, decoder_layers=1)),
    'encoder only, wide': dataclasses.replace(
      sparse, moe=dataclasses.replace(moe, decoder_layers=(), encoder_layers=(0,), expert_mlp_dim=13)
    ),
  }


@pytest.mark.parametrize('variant', ['sparse', 'dense', 'gated, untied', 'all layers', 'encoder only, wide'])
def test_names_and_shapes_are_those_of_the_model(sparse_model, flatten, variant):
  config = variants(sparse_model)[variant]
  own = flatten(jax.tree.map(lambda x: x.shape, abstract_parameters(config, Layout.single_device())))
  assert parameter_shapes(config) == own


def test_switch_attention_has_no_name_elsewhere(sparse_model):
  moe = dataclasses.replace(sparse_model.moe, encoder_attention_layers=(1,))
  with pytest.raises(ConfigError, match=r'encoder_attention_layers is \(1,\).*no names'):
    parameter_shapes(dataclasses.replace(sparse_model, moe=moe))


@pytest.mark.parametrize('variant', ['sparse', 'gated, untied'])
def test_table_reads_the_same_both_ways(sparse_model, variant):
  seen = set()
  for name in parameter_shapes(variants(sparse_model)[variant]):
    expert = 2 if '/expert/' in name else None
    other, transposed = to_huggingface(name, expert)
    assert from_huggingface(other) == (name, expert, transposed)
    assert transposed == (not name.endswith(('scale', 'embedding')) or 'rel_embedding' in name)
    seen.add(other)
  assert len(seen) == len(parameter_shapes(variants(sparse_model)[variant]))


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
