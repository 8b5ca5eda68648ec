"""The held-out batches are a fixed, finite list."""

import dataclasses

import jax
import numpy as np
import pytest

from switch_jax import data
from switch_jax.config import ConfigError


def restored_text(batches, vocabulary):
  """Returns the text of the rows with the masked spans put back in."""
  text = []
  for batch in batches:
    for inputs, targets in zip(batch['encoder_input_tokens'], batch['decoder_target_tokens'], strict=True):
      spans, sentinels = {}, []
      for token in targets[targets > 1].tolist():
        if token > 258:
          sentinels.append(token)
          spans[token, sentinels.count(token)] = []
        else:
          spans[sentinels[-1], sentinels.count(sentinels[-1])].append(token)
      seen = []
      for token in inputs[inputs > 1].tolist():
        if token > 258:
          seen.append(token)
          text += spans[token, seen.count(token)]
        else:
          text.append(token)
  return vocabulary.decode(text)


def test_every_pass_gives_the_same_batches(config, rows_sharding):
  evaluation = data.open_evaluation(config, rows_sharding, 3)
  assert len(evaluation) == 3
  first, second = (jax.tree.map(np.asarray, list(evaluation)) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, first, second)
  jax.tree.map(np.testing.assert_array_equal, first, list(evaluation.on_host))
  for batch in evaluation:
    assert batch['encoder_input_tokens'].shape == (8, 64)
    assert batch['encoder_input_tokens'].sharding.is_equivalent_to(rows_sharding, 2)


def test_the_split_ends_with_rows_of_padding_and_loses_nothing(config, text_pattern):
  batches, _ = data.read_held_out(config, 1000)
  again, _ = data.read_held_out(
    dataclasses.replace(config, num_data_shards=4, shuffle_buffer_size=7, shuffle=False), 1000
  )
  jax.tree.map(np.testing.assert_array_equal, batches, again)
  assert len(batches) < 20
  assert all(rows.shape[0] == 8 for batch in batches for rows in batch.values())
  text = restored_text(batches, data.vocabulary_of(config))
  with open(text_pattern) as file:
    paragraphs = set(file.read().split('\n\n'))
  held_out = text.rstrip('\n').split('\n')
  assert set(held_out) <= paragraphs
  assert len(held_out) == len(set(held_out))
  assert 50 < len(held_out) < 150  # a tenth of a thousand, as the text is small


def test_a_split_without_examples_is_an_error(add_copy_task):
  config = add_copy_task('nothing_held_out', [[]])
  with pytest.raises(ConfigError, match="has no example in its split 'train'"):
    data.read_held_out(dataclasses.replace(config, eval_split='train'), 1)
  with pytest.raises(ConfigError, match="has no split 'validation'"):
    data.read_held_out(config, 1)
