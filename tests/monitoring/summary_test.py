"""The summary says what was measured, in the order of the losses, and leaves out what is not known."""

import math

import numpy as np
import pytest

from switch_jax.monitoring.summary import RunFacts, experts_used, layer_key, summarize


def test_whole_summary():
  facts = RunFacts(
    steps=300,
    seconds=312.4,
    target_tokens=1234567,
    held_out_before=10.38,
    held_out_after=4.9512,
    unigram_entropy=6.51,
    bigram_entropy=4.1,
    fraction_dropped=0.0231,
    expert_tokens={'encoder_1': np.array([1, 2]), 'decoder_1': np.array([5, 1])},
    files={'metrics': '/runs/a/train/metrics.jsonl', 'picture': '/runs/a/summary.png'},
    next_command='python -m switch_jax.main --run_mode=infer',
  )
  assert summarize(facts) == (
    'Trained 300 steps on 1,234,567 target tokens in 5 min 12 s.\n'
    '\n'
    'Held-out loss, in nats per target token (sentinels and EOS left out):\n'
    '  before training   10.380\n'
    '  unigram entropy    6.510   the best one can do knowing only how frequent each token is\n'
    '  after training     4.951\n'
    '  bigram entropy     4.100   the best one can do seeing only the token before\n'
    '\n'
    'Tokens dropped: 2.31%\n'
    'Experts used:   2 of 2 in every layer\n'
    '\n'
    'metrics  /runs/a/train/metrics.jsonl\n'
    'picture  /runs/a/summary.png\n'
    '\n'
    'Next:\n'
    '  python -m switch_jax.main --run_mode=infer'
  )


def test_what_is_not_known_is_left_out():
  assert summarize(RunFacts(steps=2, seconds=3)) == 'Trained 2 steps in 3 s.'


def test_a_loss_that_is_no_number_is_seen_first():
  lines = summarize(RunFacts(steps=2, seconds=3, held_out_before=7.0, held_out_after=math.nan)).splitlines()
  assert lines[3].split() == ['after', 'training', 'nan']


@pytest.mark.parametrize(
  ('tokens', 'words'),
  [
    ({'encoder_1': [3, 0, 1]}, '2 of 3 in every layer'),
    ({'encoder_1': [3, 0, 1], 'decoder_1': [1, 1, 1]}, '2 of 3 in encoder_1, all in the other 1'),
    ({'encoder_11': [1, 0], 'encoder_9': [0, 0]}, '0 of 2 in encoder_9, 1 of 2 in encoder_11'),
  ],
)
def test_experts_used(tokens, words):
  assert experts_used(tokens) == words


def test_layers_are_sorted_by_stack_and_number():
  layers = ['decoder_1', 'encoder_11', 'decoder_10', 'encoder_9', 'decoder_9']
  assert sorted(layers, key=layer_key) == ['encoder_9', 'encoder_11', 'decoder_1', 'decoder_9', 'decoder_10']
