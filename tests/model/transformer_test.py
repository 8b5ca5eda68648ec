"""The assembly of layers into stacks: looped or scanned, packed or not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from switch_jax.config import MoeConfig
from switch_jax.model import Transformer, init_parameters
from switch_jax.model.transformer import Context, Layer, block_length
from switch_jax.parallel import Layout
from tests.model.decoding_test import parameters
from tests.training.short_runs import MODEL, MOE, batch


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_residual_stream_has_one_dtype(dtype):
  attention = dataclasses.replace(MOE, encoder_attention_layers=(0,))
  model = dataclasses.replace(MODEL, activation_dtype=dtype, moe=attention)
  transformer = Transformer(model, Layout.single_device())

  def layers():
    rows = batch()
    params = transformer.init(jax.random.key(0), rows)
    found = transformer.apply(params, rows, capture_intermediates=lambda m, _: type(m).__name__ == 'Layer')[1]
    logits = transformer.apply(params, rows)[0]
    return found['intermediates'], logits

  intermediates, logits = jax.eval_shape(layers)
  streams = [value['__call__'][0][0] for stack in ('encoder', 'decoder') for value in intermediates[stack].values()]
  assert len(streams) == 4
  assert {x.dtype for x in streams} == {jnp.dtype(dtype)}
  assert logits.dtype == jnp.float32


def test_the_extra_network_comes_after_the_experts():
  """With a norm and a residual of its own, as flaxformer's ST-MoE."""
  model = dataclasses.replace(MODEL, moe=dataclasses.replace(MOE, extra_mlp=True))
  x, ones = jax.random.normal(jax.random.key(0), (2, 5, 16)), jnp.ones((2, 5), jnp.int32)
  context = Context(ones > 0, ones, ones, jnp.zeros((2, 5, 5)))
  layer = Layer(model, Layout.single_device(), True, 'encoder', 1)
  params = meta.unbox(jax.jit(layer.init)(jax.random.key(1), x, context))['params']
  found = jax.jit(layer.apply)({'params': params}, x, context)[0]
  norm, network = params.pop('pre_extra_mlp_layer_norm'), params.pop('extra_mlp')
  y = jax.jit(Layer(MODEL, layer.layout, True, 'encoder', 1).apply)({'params': params}, x, context)[0]
  z = y / jnp.sqrt(jnp.mean(y**2, axis=-1, keepdims=True) + 1e-6) * norm['scale']
  z = jax.nn.relu(z @ network['wi']['kernel']) @ network['wo']['kernel']
  np.testing.assert_allclose(found, y + z, atol=1e-5)
  assert 'extra_mlp' not in init_parameters(model, layer.layout, jax.random.key(0))['encoder']['layers_0']


def test_scan_equals_the_loop():
  """From the same parameters: the loop's layers are stacked by hand and the first losses compared."""
  moe = dataclasses.replace(MOE, extra_mlp=True)
  model = dataclasses.replace(MODEL, num_encoder_layers=4, num_decoder_layers=4, dropout_rate=0.0, moe=moe)
  layout = Layout.single_device()
  loop, scan = (Transformer(dataclasses.replace(model, scan_layers=s), layout) for s in (False, True))
  rows = batch()
  params = jax.tree.map(lambda box: box.unbox(), jax.jit(loop.init)(jax.random.key(0), rows)['params'],
                        is_leaf=lambda x: hasattr(x, 'unbox'))  # fmt: skip
  stacked = dict(params)
  for stack in ('encoder', 'decoder'):
    layers = params[stack]
    pair = lambda i: jax.tree.map(lambda a, b: jnp.stack([a, b]), layers[f'layers_{i}'], layers[f'layers_{i + 2}'])  # noqa: B023, E731
    blocks = {f'layers_{i}': pair(i) for i in range(2)}
    stacked[stack] = {k: v for k, v in layers.items() if not k.startswith('layers_')} | {'blocks': blocks}
  names = []

  def applied(model, params):
    logits, statistics = model.apply({'params': params}, rows)
    names.append(list(statistics))  # while it is traced: jit returns them sorted
    return logits, statistics

  apply = jax.jit(applied, static_argnums=0)
  (expected, statistics), (logits, scanned_statistics) = apply(loop, params), apply(scan, stacked)
  np.testing.assert_allclose(logits, expected, atol=2e-5)
  assert names == [['encoder_1', 'encoder_3', 'decoder_1', 'decoder_3']] * 2
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), scanned_statistics, statistics)


@pytest.mark.parametrize(
  ('layers', 'moe', 'expected'),
  [
    (6, None, 1),
    (6, dict(encoder_layers=1), 1),
    (6, dict(encoder_layers=2), 2),
    (6, dict(encoder_layers=2, encoder_attention_layers=3), 6),
    (6, dict(encoder_layers=(1, 4)), 3),
    (5, dict(encoder_layers=2), 5),
  ],
)
def test_block_is_the_shortest_period(layers, moe, expected):
  moe = moe and MoeConfig(num_experts=4, **moe)
  assert block_length(dataclasses.replace(MODEL, num_encoder_layers=layers, moe=moe), 'encoder') == expected


@pytest.fixture(scope='module')
def dense():
  """Returns logits of a batch by a small dense model."""
  model = dataclasses.replace(MODEL, num_encoder_layers=1, num_decoder_layers=1, moe=None)
  params = init_parameters(model, Layout.single_device(), jax.random.key(0))
  apply = jax.jit(Transformer(model, Layout.single_device()).apply)
  return lambda rows: np.asarray(apply({'params': params}, rows)[0])


def test_packed_examples_do_not_see_each_other(dense):
  """Two examples side by side in a row give what each gives in a row of its own."""
  random = np.random.default_rng(1)
  inputs, targets = (random.integers(1, 64, (2, n), dtype=np.int32) for n in (6, 3))
  alone = dense(
    {
      'encoder_input_tokens': np.pad(inputs, ((0, 0), (0, 6))),
      'encoder_segment_ids': np.pad(np.ones_like(inputs), ((0, 0), (0, 6))),
      'decoder_input_tokens': np.pad(targets, ((0, 0), (0, 3))),
      'decoder_segment_ids': np.pad(np.ones_like(targets), ((0, 0), (0, 3))),
    }
  )
  packed = dense(
    {
      'encoder_input_tokens': np.tile(inputs.reshape(1, 12), (2, 1)),
      'encoder_segment_ids': np.tile(np.repeat([1, 2], 6), (2, 1)),
      'decoder_input_tokens': np.tile(targets.reshape(1, 6), (2, 1)),
      'decoder_segment_ids': np.tile(np.repeat([1, 2], 3), (2, 1)),
    }
  )
  np.testing.assert_allclose(packed[0, :3], alone[0, :3], atol=1e-5)
  np.testing.assert_allclose(packed[0, 3:], alone[1, :3], atol=1e-5)


def test_the_decoder_does_not_see_later_tokens(dense):
  rows = batch()
  changed = rows | {'decoder_input_tokens': rows['decoder_input_tokens'].copy()}
  changed['decoder_input_tokens'][:, 4:] = 7
  before, after = dense(rows), dense(changed)
  np.testing.assert_array_equal(before[0, :4], after[0, :4])
  assert not np.allclose(before[0, 4:], after[0, 4:])


DECODER = dataclasses.replace(
  MODEL, num_encoder_layers=0, dropout_rate=0.0, init_scale=1.0, moe=MoeConfig(num_experts=4, eval_capacity_factor=None)
)
DECODERS = {
  'relative': DECODER,
  'rotary, prefix': dataclasses.replace(DECODER, prefix_lm=True, positions='rotary'),
}


@pytest.fixture(scope='module', params=DECODERS)
def decoder(request):
  """Returns a decoder-only model, and its logits of tokens that have segments and a prefix."""
  model = DECODERS[request.param]
  params = parameters(model, Layout.single_device())
  apply = jax.jit(Transformer(model, Layout.single_device()).apply)

  def logits(tokens, segments, prefix):
    rows = {'decoder_input_tokens': tokens, 'decoder_segment_ids': segments, 'decoder_causal_attention': prefix}
    found, statistics = apply({'params': params}, rows)
    assert list(statistics) == ['decoder_1']
    return np.asarray(found)

  return model, params, logits


def test_a_decoder_only_model_sees_earlier_tokens_and_its_prefix(decoder):
  """Every token is changed in turn: where the logits move is where it is seen."""
  model, _, logits = decoder
  tokens = np.random.default_rng(0).integers(1, 64, 9, dtype=np.int32)
  segments, prefix = np.array([1, 1, 1, 1, 1, 2, 2, 2, 0]), np.array([1, 1, 1, 0, 0, 1, 1, 0, 0])
  rows = np.tile(tokens, (10, 1))
  rows[np.arange(9), np.arange(9)] = tokens % 63 + 1
  found = logits(rows, np.tile(segments, (10, 1)), np.tile(prefix, (10, 1)))
  moved = np.abs(found[:9] - found[9]).max(-1).T > 0  # [query, key]
  sees = np.tri(9, dtype=bool) | ((prefix[:, None] & prefix) > 0 if model.prefix_lm else False)
  sees &= segments[:, None] == segments
  np.testing.assert_array_equal(moved[:8, :8], sees[:8, :8])
  assert not moved[:8, 8].any(), 'padding is seen by none'


def test_packed_rows_of_a_decoder_only_model_are_separate_rows(decoder):
  _, _, logits = decoder
  tokens = np.random.default_rng(1).integers(1, 64, (2, 5), dtype=np.int32)
  segments, prefix = np.ones((2, 5), np.int32), np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
  alone = logits(*(np.pad(x, ((0, 0), (0, 5))) for x in (tokens, segments, prefix)))
  packed = logits(*(np.tile(x.reshape(1, 10), (2, 1)) for x in (tokens, segments * [[1], [2]], prefix)))
  np.testing.assert_allclose(packed[0, :5], alone[0, :5], atol=2e-5)
  np.testing.assert_allclose(packed[0, 5:], alone[1, :5], atol=2e-5)


def test_a_decoder_only_model_has_no_parameters_that_it_does_not_use(decoder):
  model, params, _ = decoder
  assert set(params) == {'token_embedder', 'decoder'}
  positions = {'relpos_bias'} if model.positions == 'relative_bias' else set()
  assert set(params['decoder']) == {'layers_0', 'layers_1', 'decoder_norm'} | positions
  parts = {'pre_self_attention_layer_norm', 'self_attention', 'pre_mlp_layer_norm', 'mlp'}
  assert set(params['decoder']['layers_0']) == parts


def test_a_scanned_decoder_only_model_is_the_loop():
  model = dataclasses.replace(DECODERS['rotary, prefix'], num_decoder_layers=4)
  layout = Layout.single_device()
  params = parameters(model, layout)
  layers = params['decoder']
  stack = lambda i: jax.tree.map(lambda a, b: jnp.stack([a, b]), layers[f'layers_{i}'], layers[f'layers_{i + 2}'])  # noqa: E731
  blocks = {f'layers_{i}': stack(i) for i in range(2)}
  stacked = params | {'decoder': {'decoder_norm': layers['decoder_norm'], 'blocks': blocks}}
  tokens = np.random.default_rng(1).integers(1, 64, (8, 6), dtype=np.int32)
  rows = {'decoder_input_tokens': tokens, 'decoder_causal_attention': (np.arange(6) < 3) * np.ones_like(tokens)}
  scanned = dataclasses.replace(model, scan_layers=True, remat_policy='minimal')
  loop, scan = (Transformer(m, layout) for m in (model, scanned))
  expected = jax.jit(loop.apply)({'params': params}, rows)[0]
  np.testing.assert_allclose(jax.jit(scan.apply)({'params': stacked}, rows)[0], expected, atol=2e-5)
