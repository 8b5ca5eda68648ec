"""What of the steps reaches files and screen, and when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switch_jax.config import DataConfig, HealthConfig, ModelConfig, MoeConfig, RunConfig
from switch_jax.monitoring import reporting
from switch_jax.monitoring.loss_watch import DivergenceError
from switch_jax.monitoring.reporting import Reporter

MODEL = ModelConfig(
  vocab_size=8, emb_dim=4, num_heads=2, head_dim=2, mlp_dim=4, num_encoder_layers=2, num_decoder_layers=2,
  moe=MoeConfig(num_experts=2),
)  # fmt: skip


class Files:
  """Keeps what is written."""

  def __init__(self, last_expert_step=None):
    self.lines, self.loads, self.pictures, self._last = {}, {}, {}, last_expert_step

  def last_expert_step(self):
    return self._last

  def write(self, step, metrics):
    self.lines[step] = metrics

  def write_expert_tokens(self, step, loads):
    self.loads[step] = loads

  def write_pictures(self, step, histograms, images):
    self.pictures[step] = histograms, images


class Progress:
  def __init__(self):
    self.shown, self.notes = [], []

  def update(self, step, loss, tokens_per_second):
    self.shown.append((step, loss))

  def note(self, text):
    self.notes.append(text)


class Clock:
  """One second a look, of which a quarter is waiting for input."""

  def __init__(self):
    self.now = 0.0

  def perf_counter(self):
    self.now += 1.0
    return self.now


@pytest.fixture
def clock(monkeypatch):
  made = Clock()
  monkeypatch.setattr(reporting, 'time', made)
  return made


def make(clock, files=None, steps=7, log_period=3, window=100):
  data = DataConfig(mixture_or_task_name='none', feature_lengths={'inputs': 4, 'targets': 4}, batch_size=2)
  run = RunConfig(
    model_dir='none', model=MODEL, data=data, train_steps=steps, random_seed=0, log_period=log_period,
    health=HealthConfig(window=window),
  )  # fmt: skip
  files, progress = files or Files(), Progress()
  return Reporter(run, files, progress, lambda: clock.now / 4, jax.devices()[0]), files, progress


def metrics_of(loss=2.0, tokens=10, norm=1.0, loads=((1, 3), (4, 4))):
  routers = {
    'expert_tokens': jnp.array(loads, jnp.float32), 'fraction_dropped': jnp.zeros(2), 'router_z_loss': jnp.ones(2)
  }  # fmt: skip
  scalars = {
    'loss': loss, 'target_tokens': tokens, 'grad_norm': norm, 'accuracy': 0.5, 'fraction_dropped/encoder_1': 0.0,
    'fraction_dropped/decoder_1': 0.0,
  }  # fmt: skip
  return {name: jnp.float32(value) for name, value in scalars.items()} | {'routers': routers}


def test_a_step_is_reported_when_the_next_one_is_dispatched(clock):
  reporter, files, progress = make(clock)
  reporter.add(1, metrics_of(loss=3.0))
  assert progress.shown == []
  reporter.add(2, metrics_of())
  assert progress.shown == [(1, 3.0)]
  assert (list(files.lines), reporter.target_tokens) == ([1], 10)
  reporter.flush()
  reporter.flush()
  assert progress.shown == [(1, 3.0), (2, 2.0)]
  assert reporter.target_tokens == 20


def test_lines_are_of_the_first_and_last_step_and_of_each_period(clock):
  reporter, files, progress = make(clock)
  for step in range(1, 8):
    reporter.add(step, metrics_of(loss=float(step)))
  reporter.flush()
  assert list(files.lines) == [1, 3, 6, 7]
  assert [step for step, _ in progress.shown] == list(range(1, 8))
  line = files.lines[6]
  assert (line['loss'], line['accuracy'], line['fraction_dropped/encoder_1']) == (6.0, 0.5, 0.0)
  assert 'routers' not in line


def test_speeds_are_of_the_steps_since_the_last_line_and_leave_out_stopped_time(clock):
  """Every step is a second of the clock and has ten tokens."""
  reporter, files, _ = make(clock)
  reporter.add(1, metrics_of())
  reporter.add(2, metrics_of())  # the clock does not run before the first step is reported
  assert 'steps_per_second' not in files.lines[1]
  reporter.add(3, metrics_of())
  reporter.stop_clock()
  clock.now += 1000
  assert files.lines[3]['steps_per_second'] == 1.0
  assert files.lines[3]['target_tokens_per_second'] == 10.0
  assert files.lines[3]['input_wait_fraction'] == 0.25
  reporter.resume_clock()
  for step in (4, 5, 6):
    reporter.add(step, metrics_of(tokens=20))
  reporter.flush()
  assert (files.lines[6]['steps_per_second'], files.lines[6]['target_tokens_per_second']) == (1.0, 20.0)


def test_loads_are_drawn_at_lines_far_enough_apart_and_at_the_end(clock):
  reporter, files, _ = make(clock, steps=230, log_period=10)
  for step in range(1, 231):
    reporter.add(step, metrics_of())
  reporter.flush()
  assert list(files.loads) == list(files.pictures) == [1, 110, 210, 230]
  assert list(files.loads[110]) == ['encoder_1', 'decoder_1']
  np.testing.assert_array_equal(files.loads[110]['encoder_1'], [4, 4])  # arrays are sorted by name, decoder first
  np.testing.assert_array_equal(files.loads[110]['decoder_1'], [1, 3])
  histograms, images = files.pictures[110]
  np.testing.assert_array_equal(histograms['expert_load/decoder_1'], [0.5, 1.5])
  assert images['expert_load'].dtype == np.uint8


def test_a_continued_run_draws_where_one_left_alone_does(clock):
  reporter, files, _ = make(clock, Files(last_expert_step=110), steps=230, log_period=10)
  for step in range(151, 221):
    reporter.add(step, metrics_of())
  reporter.flush()
  assert list(files.loads) == [210]


def test_routers_that_go_wrong_are_noted(clock):
  reporter, _, progress = make(clock, window=2)
  for step in (1, 2):
    reporter.add(step, metrics_of(loads=((0, 8), (4, 4))))
  reporter.flush()
  assert progress.notes[0].startswith('warning: decoder_1: ')


def test_a_loss_that_is_no_number_ends_the_run_after_its_line(clock):
  reporter, files, _ = make(clock)
  reporter.add(3, metrics_of(loss=float('nan')))
  with pytest.raises(DivergenceError, match='the loss of step 3 is nan'):
    reporter.add(4, metrics_of())
  assert 3 in files.lines
