"""The assembly of layers into stacks: looped or scanned, packed or not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.model import Transformer
from switch_jax.parallel import Layout
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


def test_scan_equals_the_loop():
  """From the same parameters: the loop's layers are stacked by hand and the first losses compared."""
  model = dataclasses.replace(MODEL, num_encoder_layers=4, num_decoder_layers=4, dropout_rate=0.0)
  layout = Layout.single_device()
  loop, scan = (Transformer(dataclasses.replace(model, scan_layers=s), layout) for s in (False, True))
  rows = batch()
  params = jax.tree.map(lambda box: box.unbox(), loop.init(jax.random.key(0), rows)['params'],
                        is_leaf=lambda x: hasattr(x, 'unbox'))  # fmt: skip
  stacked = dict(params)
  for stack in ('encoder', 'decoder'):
    layers = params[stack]
    pair = lambda i: jax.tree.map(lambda a, b: jnp.stack([a, b]), layers[f'layers_{i}'], layers[f'layers_{i + 2}'])  # noqa: B023, E731
    blocks = {f'layers_{i}': pair(i) for i in range(2)}
    stacked[stack] = {k: v for k, v in layers.items() if not k.startswith('layers_')} | {'blocks': blocks}
  expected, statistics = loop.apply({'params': params}, rows)
  logits, scanned_statistics = scan.apply({'params': stacked}, rows)
  np.testing.assert_allclose(logits, expected, atol=2e-5)
  assert list(scanned_statistics) == list(statistics) == ['encoder_1', 'encoder_3', 'decoder_1', 'decoder_3']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), scanned_statistics, statistics)
