"""The picture is a PNG of a sensible size, whatever a run has or lacks."""

import math
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from switch_jax.monitoring.picture import save_picture, smooth

TRAIN = [{'step': step, 'cross_ent_loss': 10 / step**0.2} for step in range(1, 101)]
HELD_OUT = [{'step': step, 'cross_ent_loss': 9 - step / 50} for step in (0, 50, 100)]


def draw(tmp_path, **kwargs):
  path = tmp_path / 'summary.png'
  save_picture(path, **kwargs)
  return matplotlib.image.imread(path)  # [height, width, channels] in [0, 1]; refuses what is no PNG


def test_whole_picture(tmp_path):
  tokens = {'encoder_1': np.array([5, 5, 0, 10]), 'decoder_1': np.array([5, 5, 5, 5])}
  yardsticks = {'unigram entropy': 6.5, 'bigram entropy': 6.4}
  pixels = draw(
    tmp_path,
    train=TRAIN,
    held_out=HELD_OUT,
    yardsticks=yardsticks,
    expert_tokens=tokens,
    title='run',
    held_out_label='a',
  )
  height, width, _ = pixels.shape
  assert 700 < height < 1200
  assert 1000 < width < 1400
  # An expert without tokens is dark blue, one with twice its share dark red.
  for colour in ((0.02, 0.19, 0.38), (0.40, 0.0, 0.12)):
    assert (np.abs(pixels[..., :3] - colour).max(-1) < 0.02).mean() > 0.01


@pytest.mark.parametrize(
  'changes',
  [
    {'train': []},
    {'train': TRAIN[:3], 'held_out': []},
    {'held_out': [{'step': 0, 'cross_ent_loss': math.nan}], 'yardsticks': {'unigram entropy': math.nan}},
    {'train': [{'step': 1, 'loss': 3.0}]},
    {'expert_tokens': {'encoder_1': np.zeros(4)}},
    {'expert_tokens': {f'encoder_{i}': np.arange(128) for i in range(6)}},
    {'expert_tokens': {'encoder_1': np.arange(4), 'encoder_3': np.arange(8)}},
  ],
  ids=['no_training', 'few_points', 'nan', 'other_metric', 'no_tokens', 'many_experts', 'mixed'],
)
def test_runs_that_lack_something(tmp_path, changes):
  pixels = draw(tmp_path, **{'train': TRAIN, 'held_out': HELD_OUT, **changes})
  assert min(pixels.shape[:2]) > 500


def test_another_metric(tmp_path):
  same = draw(tmp_path, train=TRAIN)
  renamed = [{'step': record['step'], 'text_loss': record['cross_ent_loss']} for record in TRAIN]
  np.testing.assert_array_equal(draw(tmp_path, train=renamed, train_key='text_loss'), same)


def test_smooth():
  values = np.array([1.0, 3.0, np.nan, 5.0, 9.0])
  np.testing.assert_allclose(smooth(values, 3), [1.0, 2.0, 4.0, 7.0, 9.0])
  assert np.isnan(smooth(np.array([np.nan]), 3)).all()


def test_matplotlib_is_imported_only_when_drawing():
  program = 'import sys, switch_jax.monitoring.picture; sys.exit("matplotlib" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', program], check=False).returncode == 0
