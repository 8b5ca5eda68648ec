"""Padded rows that are made a batch at a time are those of SeqIO's converter, which makes them one by one."""

import numpy as np
import pytest

from switch_jax.config import DataConfig
from switch_jax.data import padded_rows, streams
from switch_jax.data.quiet_tensorflow import seqio, tf

LENGTHS = {'inputs': 5, 'targets': 4}


def _dataset(lengths, others=(), dtype=tf.int32):
  random = np.random.default_rng(3)

  def examples():
    for pair in lengths:
      found = {name: random.integers(0, 9, length) for name, length in zip(('inputs', 'targets'), pair, strict=True)}
      yield found | dict.fromkeys(others, 7)

  spec = dict.fromkeys(('inputs', 'targets'), tf.TensorSpec([None], dtype))
  spec |= dict.fromkeys(others, tf.TensorSpec([], tf.int32))
  return tf.data.Dataset.from_generator(examples, output_signature=spec).cache()  # the same whenever it is read


@pytest.mark.parametrize('drop_remainder', [False, True])
@pytest.mark.parametrize('others', [(), ('idx',)])
def test_equal_to_seqios_converter(others, drop_remainder):
  dataset = _dataset([(5, 4), (1, 4), (0, 1), (3, 0), (5, 2)], others)  # zeros among the tokens too
  converter = seqio.EncDecFeatureConverter(pack=False)
  wanted = list(converter(dataset, LENGTHS).batch(2, drop_remainder=drop_remainder).as_numpy_iterator())
  found = list(padded_rows.to_padded_batches(dataset, LENGTHS, 2, drop_remainder=drop_remainder).as_numpy_iterator())
  assert len(found) == len(wanted) == (2 if drop_remainder else 3)
  for ours, theirs in zip(found, wanted, strict=True):
    assert ours.keys() == theirs.keys()
    for name in ours:
      np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
      assert ours[name].dtype == theirs[name].dtype, name


def test_only_pairs_of_token_vectors():
  spec = _dataset([(1, 1)]).element_spec
  assert padded_rows.are_token_pairs(spec, LENGTHS)
  assert padded_rows.are_token_pairs(spec | {'idx': tf.TensorSpec([], tf.int64)}, LENGTHS)
  assert not padded_rows.are_token_pairs(spec, {'targets': 4})
  assert not padded_rows.are_token_pairs({'targets': spec['targets']}, LENGTHS)
  assert not padded_rows.are_token_pairs(spec | {'inputs': tf.TensorSpec([None], tf.int64)}, LENGTHS)
  assert not padded_rows.are_token_pairs(spec | {'inputs': tf.TensorSpec([None, 2], tf.int32)}, LENGTHS)


@pytest.mark.parametrize(('pack', 'decoder_only'), [(False, False), (True, False), (False, True)])
def test_streams_take_the_way_that_fits(pack, decoder_only, monkeypatch):
  taken = []
  real = streams.to_padded_batches
  monkeypatch.setattr(streams, 'to_padded_batches', lambda *a, **k: taken.append(a) or real(*a, **k))
  config = DataConfig(mixture_or_task_name='any', feature_lengths=LENGTHS, batch_size=2, pack=pack)
  [batch, *_] = streams.to_batches(_dataset([(2, 3), (4, 1)]), config, 2, decoder_only=decoder_only).as_numpy_iterator()
  assert bool(taken) == (not pack and not decoder_only)
  assert ('decoder_segment_ids' in batch) == pack
